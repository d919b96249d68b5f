package scenarios

import (
	"fmt"
	"testing"
	"time"
)

// Key4CIsRarelyCalled counts what 10,000 (with -short 1,000) Encrypts and Decrypts cost at Key4C.
func Key4CIsRarelyCalled(t *testing.T) {
	count := 10_000
	if testing.Short() {
		count = 1_000
	}
	forEachAPI(t, func(t *testing.T, api string) {
		emulator := startEmulator(t)
		plugin := startPlugin(t, emulator, time.Hour) // no probe but the first
		c := connect(t, plugin.socket, "")
		answers := make([]wrapped, count)
		decryptAll := func(t *testing.T) {
			inParallel(t, "Decrypt", callerCount, count, func(i int) error {
				plaintext, err := wireDecrypt(api, c, answers[i])
				if err == nil && string(plaintext) != string(dek(i)) {
					return fmt.Errorf("got another DEK than was encrypted")
				}
				return err
			})
		}
		inParallel(t, "Encrypt", callerCount, count, func(i int) (err error) {
			answers[i], err = wireEncrypt(api, c, dek(i))
			return err
		})
		decryptAll(t)
		// One local KEK: wrapped, and unwrapped again to be sure of it.
		expectCalls(t, emulator, calls{Encrypt: 1, Decrypt: 1})

		plugin.restart(t)
		decryptAll(t)
		// Again one of its own, and that of the former process, once for all 64 callers.
		expectCalls(t, emulator, calls{Encrypt: 1 + 1, Decrypt: 1 + 2})
	})
}

// expectCalls leaves out describe, which is what probes are made of.
func expectCalls(t *testing.T, emulator *emulator, want calls) {
	t.Helper()
	got := emulator.calls(t)
	t.Logf("calls to Key4C: %+v", got)
	got.Describe = 0
	if got != want {
		t.Fatalf("calls to Key4C: %+v, want %+v", got, want)
	}
}
