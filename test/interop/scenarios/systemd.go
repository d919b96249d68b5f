package scenarios

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// serviceManager is the notify socket of one.
func serviceManager(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = manager.Close() })
	return manager
}

// TellsSystemd listens where systemd would: READY comes when the socket accepts, though Key4C is away; signs of
// life come at least as often as asked for; the end is told.
func TellsSystemd(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@k4c-notify-%d", os.Getpid())} {
		manager := serviceManager(t, name)
		next := func(want string) {
			t.Helper()
			buffer := make([]byte, 4096)
			for {
				if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				n, err := manager.Read(buffer)
				if err != nil {
					t.Fatalf("waiting for %s: %v", want, err)
				}
				told := string(buffer[:n])
				if told == want {
					return
				}
				if told != "WATCHDOG=1" && !strings.HasPrefix(told, "STATUS=") {
					t.Fatalf("told %q, want %q", told, want)
				}
			}
		}
		plugin := newPlugin(t, &emulator{url: "http://127.0.0.1:9"}, probeInterval) // nobody listens there
		plugin.env = append(plugin.env, "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=400000")
		plugin.launch(t)
		next("READY=1\nSTATUS=serving")
		if _, err := net.Dial("unix", plugin.socket); err != nil {
			t.Fatalf("ready, but %v", err)
		}
		for range 3 {
			next("WATCHDOG=1")
		}
		// Whoever asks for the path finds somebody else: it is no longer alive, and systemd may know.
		time.Sleep(time.Second) // not one that starts at the same moment
		// By one rename: a moment without any would let the plugin bind it again.
		other, err := net.Listen("unix", plugin.socket+".other")
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := os.Rename(plugin.socket+".other", plugin.socket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(250 * time.Millisecond) // one may be under way
		for manager.SetReadDeadline(time.Now().Add(time.Second)) == nil {
			buffer := make([]byte, 4096)
			n, err := manager.Read(buffer)
			if err != nil {
				break // a second without a sign of life
			}
			if told := string(buffer[:n]); strings.HasPrefix(told, "STATUS=") && !strings.Contains(told, "lost") {
				t.Fatalf("told %q of a path that is lost", told)
			}
		}
		if err := plugin.running.terminate(); err != nil {
			t.Fatal(err)
		}
		next("STOPPING=1")
	}
}

// UnreadNotificationsHoldNothingUp has a service manager that does not read, as on a node that is starved: the
// plugin works all the while, and what matters is told when there is room for it.
func UnreadNotificationsHoldNothingUp(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	manager := serviceManager(t, name)
	// Its queue is full from the start.
	filler, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for filler.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) == nil {
		if _, err := filler.Write([]byte("FILLER=1")); err != nil {
			break
		}
	}
	plugin := newPlugin(t, startEmulator(t), probeInterval)
	plugin.env = append(plugin.env, "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=100000") // 20 signs of life a second
	plugin.start(t)
	c := connect(t, plugin.socket, "")
	inParallel(t, "round trip beside a manager that does not read", callerCount, 2000, func(i int) error {
		return roundTrip([]string{"v1", "v2"}[i%2], c, dek(i))
	})
	plugin.expectLive(t)
	if warned := strings.Count(plugin.logText(t), "cannot notify systemd"); warned != 1 {
		t.Errorf("%d lines say so, want 1", warned)
	}
	var told []string
	for len(told) < 100 && !slices.Contains(told, "READY=1\nSTATUS=serving") {
		buffer := make([]byte, 4096)
		if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, err := manager.Read(buffer)
		if err != nil {
			t.Fatalf("READY does not come: %v", err)
		}
		told = append(told, string(buffer[:n]))
	}
	if !slices.Contains(told, "FILLER=1") || !slices.Contains(told, "READY=1\nSTATUS=serving") {
		t.Fatalf("told %q", told)
	}
	plugin.stop(t)
}

// PathOfAHeldSocketIsMissed removes the path of a socket that systemd holds: no API server can connect, and to
// start the service again would not help. Everybody who asks is told, and whoever is connected is served.
func PathOfAHeldSocketIsMissed(t *testing.T) {
	plugin := newPlugin(t, startEmulator(t), probeInterval)
	plugin.hold(t)
	name := filepath.Join(t.TempDir(), "notify")
	manager := serviceManager(t, name)
	plugin.env = append(plugin.env, "KMS_HTTP_ADDRESS=127.0.0.1:0", "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=100000")
	plugin.start(t)
	livez := func() int {
		response, err := http.Get("http://" + plugin.httpAddress(t) + "/livez")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		return response.StatusCode
	}
	if code := livez(); code != http.StatusOK {
		t.Fatalf("/livez says %d before", code)
	}
	c := connect(t, plugin.socket, "")
	if err := roundTrip("v2", c, dek(0)); err != nil {
		t.Fatal(err)
	}

	if err := os.Remove(plugin.socket); err != nil {
		t.Fatal(err)
	}
	if code := livez(); code != http.StatusServiceUnavailable {
		t.Errorf("/livez says %d without a path", code)
	}
	waitUntil(t, "the log to say it", func() error {
		if !strings.Contains(plugin.logText(t), "systemctl restart key4c-kms-plugin.socket") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	command := exec.Command(pluginBinary(t), "status", "--live")
	command.Env = plugin.env
	text, err := command.CombinedOutput()
	if err == nil || !strings.Contains(string(text), "systemctl restart key4c-kms-plugin.socket") {
		t.Errorf("status --live: %v: %.300s", err, text)
	}
	// systemd hears of it, and does not end what its restart would not mend.
	seen := map[string]bool{}
	waitUntil(t, "systemd to hear of it, and signs of life after it", func() error {
		buffer := make([]byte, 4096)
		if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		n, err := manager.Read(buffer)
		if err != nil {
			return err
		}
		told := string(buffer[:n])
		if strings.HasPrefix(told, "STATUS=") && strings.Contains(told, "lost") {
			seen["lost"] = true
		} else if told == "WATCHDOG=1" && seen["lost"] {
			return nil
		}
		return fmt.Errorf("told %q", told)
	})
	if err := roundTrip("v2", c, dek(1)); err != nil {
		t.Errorf("whoever was connected: %v", err)
	}
	if dials := c.dials.Load(); dials != 1 {
		t.Errorf("%d connections, want the first one to last", dials)
	}
	// The next process never saw the path: it may be one that it cannot see, so it says that nobody watches.
	plugin.stop(t)
	plugin.launch(t)
	waitUntil(t, "the next process to say it", func() error {
		if !strings.Contains(plugin.logText(t), "cannot look at the path of the socket") {
			return fmt.Errorf("not yet")
		}
		return nil
	})
}

// OthersOfSystemdAreRefused passes what must not be listened on.
func OthersOfSystemdAreRefused(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	held, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "d"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer pair.Close()
	datagram, err := pair.File()
	if err != nil {
		t.Fatal(err)
	}
	unnamed, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("@k4c-%d", os.Getpid()), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer unnamed.Close()
	abstract, err := unnamed.File()
	if err != nil {
		t.Fatal(err)
	}
	for name, descriptor := range map[string]*os.File{
		"tcp": held, "file": file, "datagrams": datagram, "abstract": abstract,
	} {
		plugin := newPlugin(t, &emulator{url: "http://127.0.0.1:9"}, probeInterval)
		plugin.held = descriptor
		plugin.launch(t)
		select {
		case <-plugin.running.exited:
		case <-time.After(patience):
			t.Fatalf("%s: it listens", name)
		}
		if code := plugin.running.command.ProcessState.ExitCode(); code != 1 {
			t.Fatalf("%s: exit code %d, want 1", name, code)
		}
	}
}
