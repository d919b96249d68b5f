// Command kms is one fake of the key management services that the plugins call: Key4C, AWS KMS, Azure Key Vault, Google
// Cloud KMS, Vault's transit and OVH's OKMS, each as its REST API is. It keeps no key: a ciphertext is the plaintext with a
// mark before it. So what is measured is the plugin, and all of them have the same KMS.
//
// Each instance of a plugin gets a port of its own, so that one can be slow, hang, refuse connections or have its key
// disabled while the others are well, and its calls are counted alone. The first line of the output is the address of:
//
//	/open                          a new port: {"port": 1234}
//	/1234/set?delayMs=20&mode=ok   how it answers: ok, hang, refuse or disabled
//	/1234/stats                    {"encrypt": 1, "decrypt": 2, "other": 3}
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("http://%s\n", listener.Addr())
	log.Fatal(http.Serve(listener, &control{ports: map[string]*port{}}))
}

type control struct {
	mutex sync.Mutex
	ports map[string]*port
}

func (c *control) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	words := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	answer, err := c.do(words, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	json.NewEncoder(w).Encode(answer)
}

func (c *control) do(words []string, r *http.Request) (any, error) {
	if words[0] == "open" {
		one := &port{address: "127.0.0.1:0", calls: map[string]int{}}
		one.mode.Store("ok")
		if err := one.listen(); err != nil {
			return nil, err
		}
		_, number, _ := net.SplitHostPort(one.address)
		c.ports[number] = one
		return map[string]string{"port": number}, nil
	}
	one := c.ports[words[0]]
	if one == nil || len(words) != 2 {
		return nil, fmt.Errorf("no %q", r.URL.Path)
	}
	if words[1] == "set" {
		return map[string]bool{"ok": true}, one.set(r.FormValue("delayMs"), r.FormValue("mode"))
	}
	one.mutex.Lock()
	defer one.mutex.Unlock()
	counted := map[string]int{}
	for operation, calls := range one.calls {
		counted[operation] = calls
	}
	return counted, nil
}

// port is one KMS of one instance of a plugin.
type port struct {
	address string
	server  *http.Server
	delayMs atomic.Int64
	mode    atomic.Value

	mutex sync.Mutex
	calls map[string]int
}

// listen takes the same port again when the one of before was closed.
func (p *port) listen() error {
	listener, err := net.Listen("tcp", p.address)
	if err != nil {
		return err
	}
	p.address = listener.Addr().String()
	p.server = &http.Server{Handler: p}
	go p.server.Serve(listener)
	return nil
}

func (p *port) set(delayMs, mode string) error {
	if delayMs != "" {
		number, err := strconv.ParseInt(delayMs, 10, 64)
		if err != nil {
			return err
		}
		p.delayMs.Store(number)
	}
	if mode == "" {
		return nil
	}
	before := p.mode.Swap(mode)
	switch {
	case mode == "refuse" && before != "refuse":
		return p.server.Close()
	case mode != "refuse" && before == "refuse":
		return p.listen()
	}
	return nil
}

func (p *port) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // its client is gone
	}
	kind := serviceOf(r)
	operation := kind.operation(r)
	p.mutex.Lock()
	p.calls[operation]++
	p.mutex.Unlock()
	mode := p.mode.Load()
	if mode == "hang" {
		<-r.Context().Done()
		return
	}
	time.Sleep(time.Duration(p.delayMs.Load()) * time.Millisecond)
	status, answer := kind.answer(operation, r, body)
	if mode == "disabled" && operation != login {
		status, answer = kind.disabledStatus, kind.disabled
	}
	w.Header().Set("Content-Type", kind.contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	w.WriteHeader(status)
	io.WriteString(w, answer)
}
