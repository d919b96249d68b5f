package plug

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Calls gives the messages of all calls of a method seen so far by the tap.
func (p *Plugin) Calls(method string) []Call {
	if p.tap == nil {
		panic("no KEY4C_TAP")
	}
	p.tap.mu.Lock()
	defer p.tap.mu.Unlock()
	var out []Call
	for _, c := range p.tap.calls {
		if strings.HasSuffix(c.Path, "/"+method) {
			out = append(out, *c)
		}
	}
	return out
}

// Last reads the request of the last call of a method.
func (p *Plugin) Last(method string, request any) {
	calls := p.Calls(method)
	if err := Unmarshal(calls[len(calls)-1].Request, request); err != nil {
		panic(err)
	}
}

// Call is one RPC on the wire.
type Call struct {
	Path              string
	Request, Response []byte // without gRPC's five bytes; nil until whole
	req, res          []byte
}

// tap relays bytes unchanged and reads along.
type tap struct {
	l     net.Listener
	mu    sync.Mutex
	calls []*Call
	conns []net.Conn
}

func startTap(path, to string) (*tap, error) {
	_ = os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	tp := &tap{l: l}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := net.Dial("unix", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			tp.mu.Lock()
			tp.conns = append(tp.conns, c, d)
			tp.mu.Unlock()
			streams := map[uint32]*Call{}
			go tp.pump(d, c, streams, true)
			go tp.pump(c, d, streams, false)
		}
	}()
	return tp, nil
}

func (tp *tap) stop() {
	_ = tp.l.Close()
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for _, c := range tp.conns {
		_ = c.Close()
	}
}

func (tp *tap) pump(dst, src net.Conn, streams map[uint32]*Call, toServer bool) {
	defer dst.Close()
	defer src.Close()
	pr, pw := io.Pipe()
	defer pw.Close()
	go tp.read(pr, streams, toServer)
	_, err := io.Copy(dst, io.TeeReader(src, pw))
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		fmt.Fprintf(os.Stderr, "KEY4C tap: %v\n", err)
	}
}

func message(b []byte) []byte {
	if len(b) < 5 || len(b) < 5+int(binary.BigEndian.Uint32(b[1:5])) {
		return nil
	}
	return b[5 : 5+binary.BigEndian.Uint32(b[1:5])]
}

func (tp *tap) read(r *io.PipeReader, streams map[uint32]*Call, toServer bool) {
	defer io.Copy(io.Discard, r)
	if toServer {
		if _, err := io.CopyN(io.Discard, r, int64(len(http2.ClientPreface))); err != nil {
			return
		}
	}
	framer := http2.NewFramer(nil, r)
	framer.SetMaxReadFrameSize(1 << 20)
	framer.ReadMetaHeaders = hpack.NewDecoder(65536, nil)
	for {
		f, err := framer.ReadFrame()
		if err != nil {
			return
		}
		tp.mu.Lock()
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if toServer {
				c := &Call{Path: f.PseudoValue("path")}
				streams[f.StreamID] = c
				tp.calls = append(tp.calls, c)
			}
		case *http2.DataFrame:
			if c := streams[f.StreamID]; c != nil {
				if toServer {
					c.req = append(c.req, f.Data()...)
					c.Request = bytes.Clone(message(c.req))
				} else {
					c.res = append(c.res, f.Data()...)
					c.Response = bytes.Clone(message(c.res))
				}
			}
		}
		tp.mu.Unlock()
	}
}
