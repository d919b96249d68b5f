package scenarios

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// callerCount is how many goroutines stand for the parallel requests of an API server.
const callerCount = 64

// loadPause leaves a processor to what is tested, and to the tests beside it.
const loadPause = 50 * time.Millisecond

// maxFailureTexts bounds what callers remember that go on failing.
const maxFailureTexts = 100

// tally counts outcomes; failures by their text, so that a thousand equal ones are one line.
type tally struct {
	succeeded atomic.Int64
	mutex     sync.Mutex
	failed    map[string]int
}

func (t *tally) add(err error) {
	if err == nil {
		t.succeeded.Add(1)
		return
	}
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.failed == nil {
		t.failed = map[string]int{}
	}
	text := err.Error()
	if len(t.failed) >= maxFailureTexts && t.failed[text] == 0 {
		text = "other failures"
	}
	t.failed[text]++
}

// expectNoFailure fails the test with the most frequent failures.
func (t *tally) expectNoFailure(test *testing.T, what string) {
	test.Helper()
	t.mutex.Lock()
	defer t.mutex.Unlock()
	total := 0
	lines := make([]string, 0, len(t.failed))
	for text, count := range t.failed {
		total += count
		lines = append(lines, fmt.Sprintf("%6d × %.300s", count, text))
	}
	if total == 0 {
		return
	}
	sort.Sort(sort.Reverse(sort.StringSlice(lines)))
	test.Fatalf("%s: %d failed, %d succeeded\n%s",
		what, total, t.succeeded.Load(), strings.Join(lines[:min(len(lines), 10)], "\n"))
}

// inParallel calls f with 0 … count-1 from a number of callers and fails the test if any call fails.
func inParallel(t *testing.T, what string, callers, count int, f func(i int) error) {
	t.Helper()
	var next atomic.Int64
	var outcome tally
	var group sync.WaitGroup
	for range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= count {
					return
				}
				outcome.add(f(i))
			}
		}()
	}
	group.Wait()
	outcome.expectNoFailure(t, what)
}

// load is a number of callers that go on until they are stopped.
type load struct {
	tally
	stopped chan struct{}
	group   sync.WaitGroup
}

// startLoad has every caller call f again and again, with a pause between (0: none).
func startLoad(t *testing.T, pause time.Duration, f func(caller, turn int) error) *load {
	l := &load{stopped: make(chan struct{})}
	for caller := range callerCount {
		l.group.Add(1)
		go func() {
			defer l.group.Done()
			for turn := 0; ; turn++ {
				l.add(f(caller, turn))
				select {
				case <-l.stopped:
					return
				case <-time.After(pause):
				}
			}
		}()
	}
	t.Cleanup(l.stop) // also when the test ends early
	return l
}

func (l *load) stop() {
	select {
	case <-l.stopped:
	default:
		close(l.stopped)
	}
	l.group.Wait()
}

// progress waits for so many more successful calls.
func (l *load) progress(t *testing.T, more int64) {
	t.Helper()
	from := l.succeeded.Load()
	end := time.Now().Add(patience)
	for l.succeeded.Load()-from < more {
		if time.Now().After(end) {
			l.expectNoFailure(t, "calls that make no progress")
			t.Fatalf("only %d of %d calls in %s", l.succeeded.Load()-from, more, patience)
		}
		time.Sleep(pollInterval)
	}
}

// pollInterval is short against everything that is waited for.
const pollInterval = 20 * time.Millisecond

// patience is how long a test waits for what must come: a deadline of the test, not of the plugin. It ends a
// test that hangs, also on a machine with ten times the work that it can do.
const patience = 2 * time.Minute

// waitUntil polls until f has no error any more.
func waitUntil(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		time.Sleep(pollInterval)
	}
}
