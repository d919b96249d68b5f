package scenarios

import (
	"fmt"
	"testing"
	"time"
)

// RestartUnderCallers stops the plugin with SIGTERM under 64 callers and starts the next one when it has
// ended. GOAWAY tells the clients what was not begun, what was begun is answered before the end, and with
// WaitForReady what comes between waits for the next process: no call of an API server may fail.
func RestartUnderCallers(t *testing.T) {
	forEachAPI(t, func(t *testing.T, api string) {
		for _, connections := range []int{1, callerCount} {
			t.Run(fmt.Sprintf("connections_%d", connections), func(t *testing.T) {
				plugin := startPlugin(t, startEmulator(t), probeInterval)
				var pool []*connection
				for range connections {
					pool = append(pool, connect(t, plugin.socket, ""))
				}
				load := startLoad(t, loadPause, func(caller, turn int) error {
					return roundTrip(api, pool[caller%connections], dek(turn))
				})
				for range 2 {
					load.progress(t, 10*callerCount)
					start := time.Now()
					plugin.stop(t)
					t.Logf("stopped in %s", time.Since(start).Round(time.Millisecond))
					plugin.start(t)
				}
				load.progress(t, 10*callerCount)
				load.stop()
				load.expectNoFailure(t, "calls during two restarts")
			})
		}
	})
}

// HandOverOfAHeldSocket replaces the plugin under 64 callers on a socket that somebody else holds, as systemd
// does: what connects between the end of one process and the start of the next waits in the queue of the
// socket, and no call fails.
func HandOverOfAHeldSocket(t *testing.T) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := newPlugin(t, startEmulator(t), probeInterval)
		plugin.hold(t)
		plugin.start(t)
		var pool []*connection
		for range 8 {
			pool = append(pool, connect(t, plugin.socket, ""))
		}
		load := startLoad(t, loadPause, func(caller, turn int) error {
			return roundTrip(api, pool[caller%len(pool)], dek(turn))
		})
		for range 4 {
			load.progress(t, 10*callerCount)
			plugin.restart(t) // the way of systemctl restart
		}
		load.progress(t, 10*callerCount)
		load.stop()
		load.expectNoFailure(t, "calls during four hand-overs")
	})
}

// HandOverFarFromKey4C restarts a plugin twenty times (with -short five) on a held socket while its first local KEK
// takes three calls of 300 ms each: every method waits for it, Status too, and no call of eight clients fails.
func HandOverFarFromKey4C(t *testing.T) {
	emulator := startEmulator(t)
	plugin := newPlugin(t, emulator, time.Hour)
	plugin.hold(t)
	plugin.start(t)
	emulator.delay(t, 300*time.Millisecond)
	var pool []*connection
	for range 8 {
		pool = append(pool, connect(t, plugin.socket, ""))
	}
	load := startLoad(t, loadPause, func(caller, turn int) error {
		c := pool[caller%len(pool)]
		for _, api := range []string{"v1", "v2"} {
			if _, err := wireVersion(api, c); err != nil {
				return fmt.Errorf("Version or Status of %s: %w", api, err)
			}
			if err := roundTrip(api, c, dek(turn)); err != nil {
				return fmt.Errorf("Encrypt or Decrypt of %s: %w", api, err)
			}
		}
		return nil
	})
	handOvers := 20
	if testing.Short() {
		handOvers = 5
	}
	for range handOvers {
		load.progress(t, callerCount)
		plugin.stop(t)
		plugin.launch(t) // what comes from now on meets the first probe
	}
	load.progress(t, callerCount)
	load.stop()
	load.expectNoFailure(t, "calls during hand-overs")
}

// SlowCallIsAnsweredBeforeTheEnd stops the plugin while a Decrypt waits for Key4C.
func SlowCallIsAnsweredBeforeTheEnd(t *testing.T) {
	forEachAPI(t, func(t *testing.T, api string) {
		emulator := startEmulator(t)
		plugin := startPlugin(t, emulator, time.Hour)
		c := connect(t, plugin.socket, "")
		w, err := wireEncrypt(api, c, dek(0))
		if err != nil {
			t.Fatal(err)
		}
		plugin.restart(t) // now Decrypt must ask Key4C
		if _, err := wireEncrypt(api, c, dek(1)); err != nil {
			t.Fatal(err)
		}
		emulator.delay(t, 2*time.Second) // below what the plugin waits for one attempt

		sent := c.sent.count()
		answered := make(chan error, 1)
		go func() {
			_, err := wireDecrypt(api, c, w)
			answered <- err
		}()
		waitUntil(t, "the Decrypt to leave", func() error {
			if c.sent.count() == sent {
				return fmt.Errorf("nothing was sent")
			}
			return nil
		})
		// An answer to a later call of the same connection: the plugin has the Decrypt.
		if _, err := wireEncrypt(api, c, dek(2)); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-answered:
			t.Fatalf("Decrypt ended (%v) before the plugin was stopped: this tests nothing", err)
		default:
		}
		plugin.stop(t)
		if err := <-answered; err != nil {
			t.Fatalf("Decrypt that was in progress at SIGTERM: %v", err)
		}
	})
}
