package scenarios

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TellsSystemd listens where systemd would: READY comes when the socket accepts, though Key4C is away; signs of
// life come at least as often as asked for; the end is told.
func TellsSystemd(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@k4c-notify-%d", os.Getpid())} {
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
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
				if told != "WATCHDOG=1" {
					t.Fatalf("told %q, want %q", told, want)
				}
			}
		}
		plugin := newPlugin(t, &emulator{url: "http://127.0.0.1:9"}, probeInterval) // nobody listens there
		plugin.env = append(plugin.env, "NOTIFY_SOCKET="+name, "WATCHDOG_USEC=400000")
		plugin.launch(t)
		next("READY=1")
		if _, err := net.Dial("unix", plugin.socket); err != nil {
			t.Fatalf("ready, but %v", err)
		}
		for range 3 {
			next("WATCHDOG=1")
		}
		// Whoever asks for the path finds somebody else: it is no longer alive, and systemd may know.
		if err := os.Remove(plugin.socket); err != nil {
			t.Fatal(err)
		}
		time.Sleep(250 * time.Millisecond) // one may be under way
		for manager.SetReadDeadline(time.Now().Add(time.Second)) == nil {
			if _, err := manager.Read(make([]byte, 4096)); err != nil {
				break // a second without a sign of life
			}
		}
		if err := plugin.running.terminate(); err != nil {
			t.Fatal(err)
		}
		next("STOPPING=1")
	}
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
	for name, descriptor := range map[string]*os.File{"tcp": held, "file": file, "datagrams": datagram} {
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
