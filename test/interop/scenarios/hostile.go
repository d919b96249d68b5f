package scenarios

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// attackTime is long enough for whatever grows to be seen growing.
	attackTime = 2 * time.Second
	// shortAttackTime shows what fails at once.
	shortAttackTime = 500 * time.Millisecond
	// aloneTime gives the figures that those beside an attack are compared with.
	aloneTime = 500 * time.Millisecond
	// honestPause is far below that of any API server, and leaves a processor to the attack.
	honestPause   = 2 * time.Millisecond
	honestCallers = 4

	// maxAttackedMiB is the most the plugin may hold at any moment of an attack: idle it has about 60 MiB,
	// its own load brings it to 200, and the manifests that people write give it 256 to 512.
	maxAttackedMiB = 400
	// maxAttackedLogBytes is what is logged at most, at the default level.
	maxAttackedLogBytes = 16 << 10
)

// HostileNeighboursHoldNobodyUp has clients that break or strain HTTP/2 in every way we know of, one way
// after the other, while honest callers work on a connection of their own: none of their calls may fail. How
// much slower they get, and how many took longer than kube-apiserver waits, is printed and not judged: on a
// busy machine that tells of the machine. With -short there is one attack for each defence, and for less long.
func HostileNeighboursHoldNobodyUp(t *testing.T) {
	attackTime, wanted := attackTime, attacks()
	if testing.Short() {
		attackTime = shortAttackTime
		wanted = slices.DeleteFunc(wanted, func(a attack) bool { return !slices.Contains(shortAttacks, a.name) })
		if len(wanted) != len(shortAttacks) {
			t.Fatalf("%d attacks, want %d", len(wanted), len(shortAttacks))
		}
	}
	for _, attack := range wanted {
		t.Run(attack.name, func(t *testing.T) {
			emulator := startEmulator(t)
			plugin := newPlugin(t, emulator, time.Hour) // no probe but the first
			plugin.env = append(plugin.env, "KMS_HTTP_ADDRESS=127.0.0.1:0")
			plugin.start(t)
			honest := connect(t, plugin.socket, "")
			alone := callHonestly(t, honest, func() { time.Sleep(aloneTime) })
			filesBefore := plugin.openFiles(t)

			a := &attacker{network: "unix", address: plugin.socket, stopped: make(chan struct{})}
			if attack.overHTTP {
				a.network, a.address = "tcp", plugin.httpAddress(t)
			}
			if attack.prepare != nil {
				attack.prepare(t, a, honest)
			}
			callsBefore := emulator.calls(t)
			beside := callHonestly(t, honest, func() {
				attack.run(a)
				time.Sleep(attackTime)
				if attack.overHTTP {
					plugin.expectLive(t) // who has the socket may well make it miss 2 s
				}
			})
			a.stop()
			memory := plugin.peakMiB(t)
			after := emulator.calls(t)
			if size := plugin.logBytes(t); size > maxAttackedLogBytes {
				t.Errorf("the plugin logged %d bytes, want at most %d", size, maxAttackedLogBytes)
			}
			called := after.Encrypt + after.Decrypt + after.Describe -
				(callsBefore.Encrypt + callsBefore.Decrypt + callsBefore.Describe)

			t.Logf("| %s | %.1f | %.1f | %d | %d | %d | %d |", attack.name,
				float64(beside.at(0.5))/float64(alone.at(0.5)), float64(beside.at(0.99))/float64(alone.at(0.99)),
				memory, called, a.connections, beside.above(apiServerTimeout))
			if memory > maxAttackedMiB {
				t.Errorf("the plugin held %d MiB, want at most %d", memory, maxAttackedMiB)
			}
			if called > attack.maxCalls {
				t.Errorf("%d calls to Key4C, want at most %d", called, attack.maxCalls)
			}
			if dials := honest.dials.Load(); dials != 1 {
				t.Errorf("%d honest connections, want the first one to last", dials)
			}
			waitUntil(t, "the attack's connections to be gone", func() error {
				if files := plugin.openFiles(t); files > filesBefore {
					return fmt.Errorf("%d files are open, %d were before", files, filesBefore)
				}
				return nil
			})
			callHonestly(t, connect(t, plugin.socket, ""), func() { time.Sleep(aloneTime / 2) })
		})
	}
}

// durations are those of calls, sorted.
type durations []time.Duration

func (d durations) at(quantile float64) time.Duration {
	return d[int(quantile*float64(len(d)-1))]
}

// above is how many took longer.
func (d durations) above(limit time.Duration) int {
	return len(d) - sort.Search(len(d), func(i int) bool { return d[i] > limit })
}

// callHonestly calls as an API server does until `during` returns, and fails the test if any call fails.
func callHonestly(t *testing.T, c *connection, during func()) durations {
	t.Helper()
	var mutex sync.Mutex
	var took durations
	timed := func(call func() error) error {
		begin := time.Now()
		err := call()
		mutex.Lock()
		defer mutex.Unlock()
		took = append(took, time.Since(begin))
		return err
	}
	var outcome tally
	var group sync.WaitGroup
	stopped := make(chan struct{})
	for caller := range honestCallers {
		group.Add(1)
		go func() {
			defer group.Done()
			for turn := caller; ; turn++ {
				select {
				case <-stopped:
					return
				case <-time.After(honestPause):
				}
				api, plaintext := []string{"v1", "v2"}[turn%2], dek(turn)
				var w wrapped
				outcome.add(timed(func() error {
					_, err := wireVersion(api, c)
					return err
				}))
				err := timed(func() (err error) {
					w, err = wireEncrypt(api, c, plaintext)
					return err
				})
				outcome.add(err)
				if err != nil {
					continue
				}
				outcome.add(timed(func() error {
					again, err := wireDecrypt(api, c, w)
					if err == nil && !bytes.Equal(again, plaintext) {
						return fmt.Errorf("got other bytes than were encrypted")
					}
					return err
				}))
			}
		}()
	}
	during()
	close(stopped)
	group.Wait()
	outcome.expectNoFailure(t, "honest calls")
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	return took
}

// peakMiB is the most memory that the plugin has held.
func (p *plugin) peakMiB(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(p.procDirectory(), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

func (p *plugin) logBytes(t *testing.T) int64 {
	t.Helper()
	info, err := p.log.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// expectLive asks as a liveness probe does, and again: one answer may take longer than 1.5 s on a busy machine, and
// whoever is starved waits longer; a kubelet asks three times, too.
func (p *plugin) expectLive(t *testing.T) {
	t.Helper()
	command := exec.Command(pluginBinary(t), "status", "--live", "--wait", "20s")
	command.Env = p.env
	if text, err := command.CombinedOutput(); err != nil {
		t.Errorf("status --live: %v: %.300s", err, text)
	}
}

func (p *plugin) openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(p.procDirectory(), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func (p *plugin) procDirectory() string {
	return fmt.Sprintf("/proc/%d", p.running.command.Process.Pid)
}
