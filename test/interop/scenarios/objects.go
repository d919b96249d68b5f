package scenarios

import (
	"bytes"
	"fmt"
	"testing"
	"time"
)

// probeInterval makes the plugin notice at once what it notices in half a minute otherwise.
const probeInterval = 200 * time.Millisecond

// ObjectsSurviveRestarts writes 2,000 secrets from 64 callers and reads them back through every kind of
// restart: of the API server, of the plugin, of both.
func ObjectsSurviveRestarts(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startService(t), probeInterval)
		server := startAPIServer(t, client, api, plugin)
		server.expectHealthy(t, api)

		objects := make([]*object, 2000)
		for i := range objects {
			objects[i] = newObject(fmt.Sprintf("secret-%d", i))
		}
		inParallel(t, "write", callerCount, len(objects), func(i int) error {
			if err := objects[i].write(server.secrets); err != nil {
				return err
			}
			return expectEncrypted(api, objects[i])
		})
		readAll := func(when string, server *apiServer) {
			t.Helper()
			inParallel(t, "read "+when, callerCount, len(objects), func(i int) error {
				stale, err := objects[i].read(server.secrets)
				if err == nil && stale {
					return fmt.Errorf("stale without a new key")
				}
				return err
			})
		}
		readAll("by who wrote them", server)
		readAll("after a restart of the API server", startAPIServer(t, client, api, plugin))

		plugin.restart(t)
		readAll("after a restart of the plugin", server)
		inParallel(t, "write after a restart of the plugin", callerCount, callerCount, func(i int) error {
			return newObject(fmt.Sprintf("later-%d", i)).write(server.secrets)
		})
		again := startAPIServer(t, client, api, plugin)
		again.expectHealthy(t, api)
		readAll("after a restart of both", again)
	})
}

// expectEncrypted fails unless the provider has encrypted the object.
func expectEncrypted(api string, o *object) error {
	if !bytes.HasPrefix(o.stored, []byte(storagePrefix(api))) {
		return fmt.Errorf("stored as %.40q, want the prefix %s", o.stored, storagePrefix(api))
	}
	if bytes.Contains(o.stored, []byte("password")) {
		return fmt.Errorf("the plaintext is in what is stored")
	}
	return nil
}
