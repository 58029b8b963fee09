// Package aziot stands in for the device side of Azure IoT Edge: the Azure IoT Identity Service
// with its daemons, and the tools iotedge and aziotctl.
//
// It reads the same config.toml, derives the same configuration of each daemon from it ([Derive]),
// and then does what the daemons do with it: keys as aziot-keyd finds and makes them, in a PKCS#11
// token or in files; certificates as aziot-certd requests them over EST; registration as
// aziot-identityd does it ([RunAgent]). It is as forgiving and as strict as the real ones, on
// purpose: an unknown key is ignored, an unknown key of [aziot_keys] is fatal. What would be
// dangerous in the real ones (identityd deletes a key whose certificate it cannot read) is an error
// here that says so.
package aziot
