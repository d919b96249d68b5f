package scenarios

import (
	"net"
	"testing"
	"time"
)

// EncryptWaitsForTheFirstLocalKEK connects as soon as a plugin that was killed accepts again, while its first
// call to Key4C is under way (case 46 of kubernetes.md §7).
func EncryptWaitsForTheFirstLocalKEK(t *testing.T) {
	forEachAPI(t, func(t *testing.T, api string) {
		emulator := startEmulator(t)
		plugin := startPlugin(t, emulator, probeInterval)
		plugin.kill(t)
		emulator.delay(t, 200*time.Millisecond) // three calls: describe, encrypt, decrypt
		plugin.running = startProcess(t, nil, plugin.log, plugin.env, "serve")
		waitUntil(t, "the socket to accept", func() error {
			conn, err := net.Dial("unix", plugin.socket)
			if err == nil {
				_ = conn.Close()
			}
			return err
		})
		if _, err := wireEncrypt(api, connect(t, plugin.socket, ""), dek(0)); err != nil {
			t.Fatalf("Encrypt while the first local KEK is made: %v", err)
		}
	})
}
