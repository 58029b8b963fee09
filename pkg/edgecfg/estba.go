package edgecfg

// estBasic has certd request an operational certificate over EST with a user
// name and password, which then stand in clear in config.toml and in certd's
// file, both of mode 0600. The LDevID is not used; its token holds the
// operational key where [edge] operational_key says "tpm".
func estBasic(in *inputs) superConfig { return in.overEST() }
