// Command bench loads KMS plugins with grpc-go, the client that kube-apiserver uses, in turns: one slice of
// time for each target, round after round, so that what else the machine does hits all of them alike. With
// -serve it is a target itself: a grpc-go server with the same AES-256-GCM and nothing else, as a yardstick.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	serve := flag.String("serve", "", "be the reference server on this unix socket instead of a client")
	targets := flag.String("targets", "", "SOCKET@PID of each server, separated by commas")
	api := flag.String("api", "v2", "v1 or v2")
	operation := flag.String("operation", "encrypt", "encrypt, decrypt or status")
	callers := flag.Int("callers", 1, "concurrent callers")
	connections := flag.Int("connections", 1, "connections that the callers share")
	rounds := flag.Int("rounds", 10, "slices for each target")
	slice := flag.Duration("slice", time.Second, "how long a slice takes")
	flag.Parse()
	if *serve != "" {
		log.Fatal(runReference(*serve))
	}
	var loads []*load
	for target := range strings.SplitSeq(*targets, ",") {
		one, err := prepare(target, *api, *operation, *callers, *connections)
		if err != nil {
			log.Fatal(err)
		}
		// A warm-up of the same kind: connections, JIT and caches are not what is measured.
		if _, err := one.run(*slice); err != nil {
			log.Fatal(err)
		}
		loads = append(loads, one)
	}
	results := make([][]Result, len(loads))
	for range *rounds {
		for at, one := range loads {
			result, err := one.run(*slice)
			if err != nil {
				log.Fatal(err)
			}
			results[at] = append(results[at], result)
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		log.Fatal(err)
	}
}

// Result is one slice: calls a second, latencies, and what the server's process used of the CPUs.
type Result struct {
	Calls      int     `json:"calls"`
	PerSecond  float64 `json:"perSecond"`
	P50Micros  float64 `json:"p50Micros"`
	P99Micros  float64 `json:"p99Micros"`
	P999Micros float64 `json:"p999Micros"`
	CPUMicros  float64 `json:"cpuMicros"` // a call
	Errors     int     `json:"errors"`
}

// load is what one target gets: a call for each caller to repeat.
type load struct {
	calls []func() error
	pid   string
}

func prepare(target, api, operation string, callers, connections int) (*load, error) {
	socket, pid, found := strings.Cut(target, "@")
	if !found {
		return nil, fmt.Errorf("no PID in %q", target)
	}
	var shared []func() error
	for range connections {
		conn, err := grpc.NewClient("unix://"+socket,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
		if err != nil {
			return nil, err
		}
		call, err := repeatable(conn, api, operation)
		if err != nil {
			return nil, err
		}
		shared = append(shared, call)
	}
	one := &load{pid: pid}
	for caller := range callers {
		one.calls = append(one.calls, shared[caller%connections])
	}
	return one, nil
}

func (l *load) run(slice time.Duration) (Result, error) {
	var mutex sync.Mutex
	var all []time.Duration
	var errors int
	var group sync.WaitGroup
	before, err := cpuTime(l.pid)
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	for _, call := range l.calls {
		group.Go(func() {
			var own []time.Duration
			failed := 0
			for at := time.Now(); at.Sub(start) < slice; {
				if call() != nil {
					failed++
				}
				end := time.Now()
				own = append(own, end.Sub(at))
				at = end
			}
			mutex.Lock()
			defer mutex.Unlock()
			all = append(all, own...)
			errors += failed
		})
	}
	group.Wait()
	elapsed := time.Since(start)
	after, err := cpuTime(l.pid)
	if err != nil {
		return Result{}, err
	}
	slices.Sort(all)
	at := func(part float64) float64 {
		return float64(all[int(part*float64(len(all)-1))].Nanoseconds()) / 1e3
	}
	return Result{
		Calls:      len(all),
		PerSecond:  float64(len(all)) / elapsed.Seconds(),
		P50Micros:  at(0.50),
		P99Micros:  at(0.99),
		P999Micros: at(0.999),
		CPUMicros:  float64((after - before).Nanoseconds()) / 1e3 / float64(len(all)),
		Errors:     errors,
	}, nil
}

// cpuTime is what a process and its threads have used so far, user and system, in nanoseconds: its CPU clock
// (clock_getcpuclockid(3)); /proc/PID/stat counts in 10 ms, a twentieth of a slice.
func cpuTime(pid string) (time.Duration, error) {
	number, err := strconv.Atoi(pid)
	if err != nil {
		return 0, err
	}
	const processClock = 2 // CPUCLOCK_SCHED
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^number<<3|processClock), &used); err != nil {
		return 0, fmt.Errorf("CPU clock of process %s: %w", pid, err)
	}
	return time.Duration(used.Nano()), nil
}
