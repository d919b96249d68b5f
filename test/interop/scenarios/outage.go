package scenarios

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/connectivity"
)

// outage is how long the plugin is away: less than kube-apiserver waits (apiServerTimeout), more than its first
// attempt to connect again takes.
const outage = 200 * time.Millisecond

// KilledPluginIsWaitedFor kills an idle plugin and starts the next within the timeout of a call that was made
// between (case 46 of kubernetes.md §7). What the first one leaves is a socket on which nobody answers.
func KilledPluginIsWaitedFor(t *testing.T) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		var pool [3]*connection // one for each method: none of them may need another to wake the connection
		for i := range pool {
			pool[i] = connect(t, plugin.socket, "")
			if err := roundTrip(api, pool[i], dek(i)); err != nil {
				t.Fatal(err)
			}
		}
		w, err := wireEncrypt(api, pool[0], dek(0))
		if err != nil {
			t.Fatal(err)
		}

		plugin.kill(t)
		waitUntil(t, "the connections to notice", func() error {
			for _, c := range pool {
				if state := c.GetState(); state == connectivity.Ready {
					return fmt.Errorf("%s", state)
				}
			}
			return nil
		})
		start := time.Now()
		outcomes := make(chan error, len(pool))
		go func() {
			_, err := wireDecrypt(api, pool[0], w)
			outcomes <- err
		}()
		go func() {
			_, err := wireEncrypt(api, pool[1], dek(1))
			outcomes <- err
		}()
		go func() {
			_, err := wireVersion(api, pool[2])
			outcomes <- err
		}()
		select {
		case err := <-outcomes:
			t.Fatalf("a call ended (%v) while there was no plugin", err)
		case <-time.After(outage):
		}
		plugin.start(t)
		for range pool {
			if err := <-outcomes; err != nil {
				t.Errorf("call made while the plugin was away: %v", err)
			}
		}
		t.Logf("answered after %s", time.Since(start).Round(time.Millisecond))
	})
}

// PluginStartsAfterAPIServer starts the API server while the path of the socket does not even exist (case 48
// of kubernetes.md §7).
func PluginStartsAfterAPIServer(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		t.Parallel() // it is the API server's timeouts that take long
		plugin := newPlugin(t, startEmulator(t), probeInterval)
		server := startAPIServer(t, client, api, plugin)
		if err := newObject("early").write(server.secrets); err == nil {
			t.Fatal("a write succeeds without a plugin")
		}

		plugin.start(t)
		start := time.Now()
		// The API server believes a bad answer for 3 s, and its connection backs off.
		waitUntil(t, "the health check to pass", server.checkHealth)
		server.expectHealthy(t, api)
		t.Logf("healthy after %s", time.Since(start).Round(time.Millisecond))
		inParallel(t, "write and read", callerCount, callerCount, func(i int) error {
			o := newObject(fmt.Sprintf("secret-%d", i))
			if err := o.write(server.secrets); err != nil {
				return err
			}
			if err := expectEncrypted(api, o); err != nil {
				return err
			}
			_, err := o.read(server.secrets)
			return err
		})
	})
}
