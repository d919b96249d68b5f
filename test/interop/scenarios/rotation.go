package scenarios

import (
	"bytes"
	"fmt"
	"testing"
)

// RotationUnderWriters gives the Key4C key a new version while 64 callers write.
func RotationUnderWriters(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		emulator := startEmulator(t)
		plugin := startPlugin(t, emulator, probeInterval)
		server := startAPIServer(t, client, api, plugin)
		server.expectHealthy(t, api)

		var old [callerCount]*object
		inParallel(t, "write before the rotation", callerCount, len(old), func(i int) error {
			old[i] = newObject(fmt.Sprintf("old-%d", i))
			return old[i].write(server.secrets)
		})
		oldKeyID := plugin.keyID(t)

		var during [callerCount][]*object
		// The pause leaves the plugin and the emulator their part of two processors.
		load := startLoad(t, loadPause, func(caller, turn int) error {
			o := newObject(fmt.Sprintf("during-%d-%d", caller, turn))
			if err := o.write(server.secrets); err != nil {
				return err
			}
			if turn%20 == 0 {
				during[caller] = append(during[caller], o)
			}
			_, err := old[caller].read(server.secrets)
			return err
		})
		load.progress(t, callerCount)
		emulator.rotate(t)
		var newKeyID string
		waitUntil(t, "the plugin to notice the rotation", func() error {
			newKeyID = plugin.keyID(t)
			if newKeyID == oldKeyID {
				return fmt.Errorf("still %s", oldKeyID)
			}
			return nil
		})
		if api == "v2" {
			waitForAPIServer(t, server, newKeyID)
		}
		load.progress(t, callerCount)
		load.stop()
		load.expectNoFailure(t, "writes and reads during the rotation")

		// What the API server calls stale it writes anew at the next migration. KMS v1 knows no key_id,
		// so there nothing ever is.
		expectStale := func(o *object, want bool) error {
			stale, err := o.read(server.secrets)
			if err == nil && stale != want {
				return fmt.Errorf("%s: stale %t, want %t", o.name, stale, want)
			}
			return err
		}
		inParallel(t, "write after the rotation", callerCount, callerCount, func(i int) error {
			o := newObject(fmt.Sprintf("new-%d", i))
			if err := o.write(server.secrets); err != nil {
				return err
			}
			if api == "v2" && !hasKeyID(o, newKeyID) {
				return fmt.Errorf("%s is not under %s", o.name, newKeyID)
			}
			return expectStale(o, false)
		})
		inParallel(t, "read what is older than the rotation", callerCount, len(old), func(i int) error {
			return expectStale(old[i], api == "v2")
		})

		// Nobody's cache helps here: Key4C itself must still unwrap what its former version wrapped.
		plugin.restart(t)
		server = startAPIServer(t, client, api, plugin)
		inParallel(t, "read after a restart of both", callerCount, callerCount, func(i int) error {
			for _, o := range append(during[i], old[i]) {
				if err := expectStale(o, api == "v2" && !hasKeyID(o, newKeyID)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// waitForAPIServer waits until the API server writes under the new key_id. It learns of a new key_id from
// Status only, which it asks every minute and whenever somebody asks its health checks (the kubelet and
// load balancers do, all the time) and the last good answer is older than 20 s. So asking them, as /readyz
// would, is the faster of the two ways that it has, and takes up to 20 s.
func waitForAPIServer(t *testing.T, server *apiServer, newKeyID string) {
	t.Helper()
	waitUntil(t, "the API server to write under "+newKeyID, func() error {
		if err := server.checkHealth(); err != nil {
			t.Fatalf("health check failed during the rotation: %v", err)
		}
		o := newObject("probe")
		if err := o.write(server.secrets); err != nil {
			t.Fatal(err)
		}
		if !hasKeyID(o, newKeyID) {
			return fmt.Errorf("writes are still under the old one")
		}
		return nil
	})
}

// hasKeyID tells whether a v2 object is stored under a key_id, which stands in it in clear.
func hasKeyID(o *object, keyID string) bool {
	return bytes.Contains(o.stored, []byte(keyID))
}
