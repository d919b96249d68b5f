package scenarios

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	// binaryVariable names the plugin under test; the default is where `npm run build` puts it, seen from
	// the directory of a release's module.
	binaryVariable = "KEY4C_KMS_PLUGIN"
	defaultBinary  = "../../../dist/key4c-kms-plugin"

	keyID = "demo"
)

// pluginBinary fails loudly when there is nothing to test: a skipped interop test looks like a passed one.
func pluginBinary(t *testing.T) string {
	t.Helper()
	path := os.Getenv(binaryVariable)
	if path == "" {
		path = defaultBinary
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(absolute); err != nil {
		t.Fatalf("no plugin to test: %v; run `npm run build` or set %s", err, binaryVariable)
	}
	return absolute
}

// noConfigFile keeps the binary from the /etc/key4c-kms/config of whoever runs the tests.
const noConfigFile = "KMS_CONFIG=/dev/null"

// process is a running command of the binary.
type process struct {
	command *exec.Cmd
	exited  chan struct{}
}

// startProcess runs the binary with nothing of our own environment, so that no KMS_… of the caller's shell
// leaks in.
func startProcess(t *testing.T, stdout, log io.Writer, env []string, arguments ...string) *process {
	t.Helper()
	env = append([]string{noConfigFile}, env...)
	return startCommand(t, stdout, log, env, exec.Command(pluginBinary(t), arguments...))
}

func startCommand(t *testing.T, stdout, log io.Writer, env []string, command *exec.Cmd) *process {
	t.Helper()
	command.Env = env
	command.Stdout = stdout
	command.Stderr = log
	// When the test binary is killed, by a timeout for instance, its plugins must not stay behind.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{command: command, exited: make(chan struct{})}
	go func() {
		_ = command.Wait() // what it ended with is in ProcessState
		close(p.exited)
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill() // it may have ended already
		<-p.exited
	})
	return p
}

// terminate sends SIGTERM and waits for the end, which must be an orderly one.
func (p *process) terminate() error {
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.exited:
	case <-time.After(patience):
		return fmt.Errorf("still running %s after SIGTERM", patience)
	}
	if code := p.command.ProcessState.ExitCode(); code != 0 {
		return fmt.Errorf("%s after SIGTERM", p.command.ProcessState)
	}
	return nil
}

// logFile keeps what a process logs and shows the end of it when the test fails.
func logFile(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer file.Close()
		if !t.Failed() {
			return
		}
		text, _ := os.ReadFile(path) // only a help for the reader
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		for _, line := range lines[max(0, len(lines)-20):] {
			t.Logf("%s: %.300s", filepath.Base(path), line)
		}
	})
	return file
}

// emulator is a Key4C of its own process: it outlives the plugins, keeps their keys and counts their calls.
type emulator struct {
	url string
	// settings of the plugin, where it is another service: see serviceVariable.
	settings []string
}

// serviceVariable has the environment of a plugin, one NAME=value a line, for a service of others that somebody
// runs: test/e2e/profiles.e2e.ts does.
const serviceVariable = "KEY4C_KMS_SERVICE"

// startService is that service, and the emulator when there is none. It can be served, and not controlled.
func startService(t *testing.T) *emulator {
	t.Helper()
	if settings := os.Getenv(serviceVariable); settings != "" {
		return &emulator{settings: strings.Split(settings, "\n")}
	}
	return startEmulator(t)
}

func startEmulator(t *testing.T) *emulator {
	t.Helper()
	directory := t.TempDir()
	stdout, stdoutWriter := io.Pipe()
	startProcess(t, stdoutWriter, logFile(t, filepath.Join(directory, "emulator.log")), nil,
		"emulator", "--listen", "127.0.0.1:0", "--control", "--key-id", keyID,
		"--data", filepath.Join(directory, "keys.json"))
	line := make(chan string, 1)
	go func() {
		text, _ := bufio.NewReader(stdout).ReadString('\n') // an empty line says enough
		_ = stdout.Close()                                  // nothing else is expected, and nobody would read it
		line <- strings.TrimSpace(text)
	}()
	select {
	case text := <-line:
		url, found := strings.CutPrefix(text, "export KEY4C_URL=")
		if !found {
			t.Fatalf("the emulator printed %q, want export KEY4C_URL=…", text)
		}
		return &emulator{url: url}
	case <-time.After(patience):
		t.Fatal("the emulator does not tell its URL")
		return nil
	}
}

// rotate gives the key a new version.
func (e *emulator) rotate(t *testing.T) {
	t.Helper()
	e.control(t, http.MethodPost, "/emulator/keys/"+keyID+"/rotate", "", nil)
}

// delay makes every later call to Key4C take so long.
func (e *emulator) delay(t *testing.T, latency time.Duration) {
	t.Helper()
	body := fmt.Sprintf(`{"ms":%d}`, latency.Milliseconds())
	e.control(t, http.MethodPut, "/emulator/latency", body, nil)
}

// calls is how often each operation of Key4C was called.
type calls struct {
	Describe, Encrypt, Decrypt, Refused int
}

func (e *emulator) calls(t *testing.T) (counted calls) {
	t.Helper()
	e.control(t, http.MethodGet, "/emulator/stats", "", &counted)
	return counted
}

func (e *emulator) control(t *testing.T, method, path, body string, answer any) {
	t.Helper()
	request, err := http.NewRequest(method, e.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s %s %v", method, path, response.Status, text, err)
	}
	if answer != nil {
		if err := json.Unmarshal(text, answer); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
}

// plugin is the plugin under test on a socket that stays the same over restarts.
type plugin struct {
	socket string
	env    []string
	// held is the listening socket that the test keeps for it, as systemd does; nil where it has its own.
	held    *os.File
	log     *os.File
	running *process
}

// startPlugin starts a plugin for the emulator's key and waits until it is ok.
func startPlugin(t *testing.T, emulator *emulator, probeInterval time.Duration) *plugin {
	t.Helper()
	p := newPlugin(t, emulator, probeInterval)
	p.start(t)
	return p
}

// newPlugin is one that is still to be started.
func newPlugin(t *testing.T, emulator *emulator, probeInterval time.Duration) *plugin {
	t.Helper()
	// Not t.TempDir: with a test's long name in it the path would not fit into sun_path.
	directory, err := os.MkdirTemp("", "kms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	socket := filepath.Join(directory, "kms.sock")
	return &plugin{
		socket: socket,
		env: append([]string{
			noConfigFile,
			"KMS_ENDPOINT=unix://" + socket,
			"KEY4C_URL=" + emulator.url,
			"KMS_KEY_ID=" + keyID,
			"KMS_USER_ID=test",
			"KMS_PROBE_INTERVAL=" + fmt.Sprintf("%dms", probeInterval.Milliseconds()),
		}, emulator.settings...), // of two with one name the last counts
		log: logFile(t, filepath.Join(directory, "plugin.log")),
	}
}

func (p *plugin) endpoint() string {
	return "unix://" + p.socket
}

// start returns when the plugin is ok.
func (p *plugin) start(t *testing.T) {
	t.Helper()
	p.launch(t)
	p.keyID(t)
}

// launch starts the process and does not wait.
func (p *plugin) launch(t *testing.T) {
	t.Helper()
	if p.held == nil {
		p.running = startProcess(t, nil, p.log, p.env, "serve")
		return
	}
	// LISTEN_PID must be the process itself, which only a shell that becomes it can tell in time.
	command := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" serve`, pluginBinary(t))
	command.ExtraFiles = []*os.File{p.held} // descriptor 3
	p.running = startCommand(t, nil, p.log, p.env, command)
}

var httpURL = regexp.MustCompile(`"health and metrics","url":"http://([^/"]+)/"`)

// httpAddress is where the plugin serves HTTP, by its log.
func (p *plugin) httpAddress(t *testing.T) string {
	t.Helper()
	found := httpURL.FindStringSubmatch(p.logText(t))
	if found == nil {
		t.Fatal("the log names no address of HTTP")
	}
	return found[1]
}

func (p *plugin) logText(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// hold makes the listening socket that systemd would make, and keeps it for the plugin.
func (p *plugin) hold(t *testing.T) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	p.held, err = listener.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.held.Close() })
}

// stop ends the plugin in the way of the kubelet and systemd.
func (p *plugin) stop(t *testing.T) {
	t.Helper()
	if err := p.running.terminate(); err != nil {
		t.Fatalf("plugin: %v", err)
	}
}

// kill ends the plugin in the way of the kernel when memory is short.
func (p *plugin) kill(t *testing.T) {
	t.Helper()
	if err := p.running.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.running.exited
}

// restart leaves caches and local KEK behind.
func (p *plugin) restart(t *testing.T) {
	t.Helper()
	p.stop(t)
	p.start(t)
}

// keyID waits until the plugin is ok and returns the key_id of its Status.
func (p *plugin) keyID(t *testing.T) string {
	t.Helper()
	command := exec.Command(pluginBinary(t), "status", "--wait", fmt.Sprintf("%.0fs", patience.Seconds()))
	command.Env = p.env
	var stderr strings.Builder
	command.Stderr = &stderr
	line, err := command.Output()
	if err != nil {
		t.Fatalf("status --wait: %v: %.300s", err, stderr.String())
	}
	var status struct {
		Healthz string `json:"healthz"`
		KeyID   string `json:"keyId"`
	}
	if err := json.Unmarshal(line, &status); err != nil || status.Healthz != "ok" || status.KeyID == "" {
		t.Fatalf("status printed %.300s (%v)", line, err)
	}
	return status.KeyID
}
