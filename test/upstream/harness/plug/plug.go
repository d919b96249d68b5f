// Package plug runs key4c-kms-plugin, with an emulated Key4C of its own, in the place of upstream's mocks.
//
// What the runner tells in the environment:
//
//	KEY4C_KMS_PLUGIN     the binary under test
//	KEY4C_DIRECTORY      for sockets, keys and the output of each process
//	KEY4C_FAILURE        what upstream's "failed state" is: disabled (the key) or away (Key4C)
//	KEY4C_FAILED_STATUS  the gRPC status that the plugin answers with then, as Go prints it
//	KEY4C_TAP            not empty: read along what the API server and the plugin say to each other
package plug

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Directory holds the sockets: upstream's tests use abstract ones, which the plugin does not serve.
func Directory() string { return os.Getenv("KEY4C_DIRECTORY") }

// FailedStatus is what the API server then sees: the mock's own would be
// `FailedPrecondition desc = failed precondition - key disabled`.
func FailedStatus() string { return os.Getenv("KEY4C_FAILED_STATUS") }

func isAway() bool { return os.Getenv("KEY4C_FAILURE") == "away" }

// On a busy machine; both are gone in a fraction of a second otherwise.
const (
	startWithin = time.Minute
	stopWithin  = 30 * time.Second
)

// Plugin is one plugin with its emulator.
type Plugin struct {
	Socket string // where the API server calls
	Direct string // where the plugin listens: the same, but with a tap
	emu    *exec.Cmd
	serve  *exec.Cmd
	url    string
	tap    *tap
	once   sync.Once
	t      testing.TB

	startEmulator func() *exec.Cmd
}

// freePort is one on which nobody listens, below those that the kernel gives to outgoing connections: an emulator that
// is stopped and started again finds it free.
func freePort() int {
	for {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(10_000)))
		if err == nil {
			defer l.Close()
			return l.Addr().(*net.TCPAddr).Port
		}
	}
}

func Start(t testing.TB, socketPath string) *Plugin {
	t.Helper()
	p := &Plugin{t: t, Socket: filepath.Join(Directory(), strings.TrimPrefix(filepath.Base(socketPath), "@"))}
	p.Direct = p.Socket
	if os.Getenv("KEY4C_TAP") != "" {
		p.Direct += ".direct"
	}
	// A plugin that a test starts again must find its keys: like the mock, whose one key is in its source.
	owner := strings.ReplaceAll(t.Name(), "/", "_")
	if strings.HasPrefix(owner, "TestKMSv2ProviderLegacyData") {
		owner = "TestKMSv2ProviderLegacyData" // its second part reads what the first has left in etcd
	}
	data := p.Socket + "." + owner + ".keys"
	port := freePort()
	p.url = fmt.Sprintf("http://127.0.0.1:%d", port)
	output := p.Socket + "." + strings.ReplaceAll(t.Name(), "/", "_")
	p.startEmulator = func() *exec.Cmd {
		return run(t, output+".emulator.log", nil,
			"emulator", "--listen", fmt.Sprintf("127.0.0.1:%d", port), "--control", "--key-id", "demo", "--data", data)
	}
	p.emu = p.startEmulator()
	t.Cleanup(p.CleanUp)
	env := []string{
		"KMS_USER_ID=upstream", "KMS_KEY_ID=demo", "KEY4C_URL=" + p.url, "KMS_HTTP_ADDRESS=", "KMS_PROBE_INTERVAL=500ms", "KMS_REVOCATION_GRACE=0s",
		"KEY4C_PROFILE=" + os.Getenv("KEY4C_PROFILE"),
	}
	if isAway() {
		env = append(env, "KMS_OUTAGE_GRACE=1s") // by default an outage is no failed state at all
	}
	p.serve = run(t, output+".serve.log", env, "serve", "--endpoint", "unix://"+p.Direct)
	for end := time.Now().Add(startWithin); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", p.Direct)
		if err == nil {
			_ = c.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the plugin does not listen: %v", err)
		}
	}
	if p.Direct != p.Socket {
		tap, err := startTap(p.Socket, p.Direct)
		if err != nil {
			t.Fatalf("tap: %v", err)
		}
		p.tap = tap
	}
	return p
}

func run(t testing.TB, output string, env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Getenv("KEY4C_KMS_PLUGIN"), args...)
	cmd.Env = append([]string{"KMS_CONFIG=/dev/null"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	file, err := os.OpenFile(output, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd.Stderr, cmd.Stdout = file, file
	if err := cmd.Start(); err != nil {
		t.Fatalf("start: %v", err)
	}
	return cmd
}

// CleanUp stops it as an operator does.
func (p *Plugin) CleanUp() {
	p.once.Do(func() {
		if p.tap != nil {
			p.tap.stop()
		}
		for _, c := range []*exec.Cmd{p.serve, p.emu} {
			if c == nil || c.ProcessState != nil {
				continue
			}
			_ = c.Process.Signal(syscall.SIGTERM)
			done := make(chan struct{})
			go func() { _ = c.Wait(); close(done) }()
			select {
			case <-done:
			case <-time.After(stopWithin):
				p.t.Errorf("%v did not stop in %v after SIGTERM", c.Args, stopWithin)
				_ = c.Process.Kill()
				<-done
			}
			if code := c.ProcessState.ExitCode(); code != 0 {
				p.t.Errorf("%v ended with %d", c.Args, code)
			}
		}
	})
}

// Control does what an administrator does in Key4C.
func (p *Plugin) Control(action string) {
	r, err := http.Post(p.url+"/emulator/keys/demo/"+action, "application/json", nil)
	if err != nil {
		panic(err)
	}
	defer r.Body.Close()
	if r.StatusCode != 200 {
		panic(fmt.Sprintf("%s: %d", action, r.StatusCode))
	}
}

// EnterFailedState makes Key4C refuse the key, or go away.
func (p *Plugin) EnterFailedState() {
	if isAway() {
		_ = p.emu.Process.Kill()
		_ = p.emu.Wait()
		return
	}
	p.Control("disable")
}

// ExitFailedState ends what EnterFailedState began.
func (p *Plugin) ExitFailedState() {
	if isAway() {
		p.emu = p.startEmulator()
		return
	}
	p.Control("enable")
}

// ReplaceFile is os.WriteFile in one step: nobody finds the file empty or half written.
func ReplaceFile(path string, data []byte, mode os.FileMode) error {
	if err := os.WriteFile(path+".new", data, mode); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
