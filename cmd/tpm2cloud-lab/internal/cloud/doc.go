// Package cloud is the cloud in a box: everything that a device meets outside of itself.
//
// It holds certificate authorities for the three kinds of device certificates, an EST server with
// one label each (the router is github.com/globalsign/est; this package gives it a CA,
// authentication and, for tests, faults), stand-ins for the Azure Device Provisioning Service and
// the IoT Hub as far as aziot-identityd uses them, and an HTTP CONNECT proxy.
//
// All of it lives in one directory and listens on loopback only. [Create] makes the authorities,
// [Serve] makes what is missing of them and runs until its context ends. Whatever a client needs to
// know is in lab.json ([Description]); what happened is in lab.log, one JSON line an event
// ([Event]). It is for demos, tests and offline benches: the keys of its authorities are plain
// files, and nothing here should ever be asked to protect a real device.
package cloud
