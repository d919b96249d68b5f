package scenarios

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
)

// NeighboursHoldNobodyUp has 200 clients that stop in the midst of a call and one that never reads its
// answers, while an honest one works (case 49 of kubernetes.md §7). In the end they go on where they stopped
// and are served: they were there all the time.
func NeighboursHoldNobodyUp(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	before := connect(t, plugin.socket, "")
	if err := roundTrip("v1", before, dek(0)); err != nil {
		t.Fatal(err)
	}

	const (
		prefaceBytes     = len(http2.ClientPreface)
		frameHeaderBytes = 9
		firstFragment    = 10 // of the header block; the rest is in a CONTINUATION frame
		eachStop         = 40
	)
	afterSettings := prefaceBytes + frameHeaderBytes
	var halfway []*rawConnection
	for _, sentBytes := range []int{
		0,
		prefaceBytes / 2,
		prefaceBytes,
		afterSettings + frameHeaderBytes/2,
		afterSettings + frameHeaderBytes + firstFragment, // HEADERS without END_HEADERS
	} {
		for range eachStop {
			c := dialRaw(t, plugin.socket)
			stream := c.open(callFields(v1Service+"Version"), framing{cuts: []int{firstFragment}})
			c.data(stream, true, grpcMessage(versionRequest))
			if _, err := c.conn.Write(c.written.Next(sentBytes)); err != nil {
				t.Fatal(err)
			}
			halfway = append(halfway, c)
		}
	}

	// As many as its part of the connection's window allows, for it does not read WINDOW_UPDATEs either.
	const unreadCalls = 100 // below what the plugin allows on a connection
	unread := dialRaw(t, plugin.socket, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	for i := range unreadCalls {
		stream := unread.open(callFields(v1Service+"Encrypt"), framing{})
		unread.data(stream, true, grpcMessage(v1Request(dek(i))))
	}
	if err := unread.flush(false); err != nil {
		t.Fatal(err)
	}

	pool := []*connection{before, connect(t, plugin.socket, "")}
	inParallel(t, "round trip beside 201 neighbours", callerCount, 2000, func(i int) error {
		return roundTrip([]string{"v1", "v2"}[i/len(pool)%2], pool[i%len(pool)], dek(i))
	})
	if dials := before.dials.Load(); dials != 1 {
		t.Errorf("%d connections, want the first one to last", dials)
	}

	inParallel(t, "the rest of a neighbour's call", callerCount, len(halfway), func(i int) error {
		got, err := halfway[i].answer(1)
		if err == nil {
			err = expectVersionAnswer(got)
		}
		return err
	})
	_ = unread.writing.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: defaultWindow})
	for i := range uint32(unreadCalls) {
		got, err := unread.answer(1 + 2*i)
		if err == nil {
			err = got.expectStatus(codes.OK)
		}
		if err != nil {
			t.Fatal(fmt.Errorf("unread call %d: %w", i, err))
		}
	}
}

// UnreadAnswersAreBounded has a client that sends requests and never reads the answers (case 49 of
// kubernetes.md §7): before long the plugin reads no more of them, so that it need not keep the answers.
func UnreadAnswersAreBounded(t *testing.T) {
	const (
		pathBytes = 2000
		maxBytes  = 8 << 20 // far more than the kernel keeps for both sides
	)
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	c := dialRaw(t, plugin.socket)
	c.timeout = apiServerTimeout // it must run out
	var err error
	sentBytes := 0
	for err == nil && sentBytes < maxBytes {
		// The name of an unknown method comes back in HEADERS, which no window holds back.
		path := fmt.Sprintf("/%d/%s", c.nextStream, strings.Repeat("k", pathBytes))
		fields := callFields(path)
		fields[2].form.indexing = notIndexed
		stream := c.open(fields, framing{})
		c.data(stream, true, nil)
		sentBytes += c.written.Len()
		err = c.flush(false)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes of requests were read while no answer was (%v)", sentBytes, err)
	}
	t.Logf("read no more after %d bytes of requests", sentBytes)

	honest := connect(t, plugin.socket, "")
	inParallel(t, "round trip", callerCount, callerCount, func(i int) error {
		return roundTrip("v2", honest, dek(i))
	})
	if err := c.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		t.Fatal(err)
	}
	// It was only held up: whoever reads gets everything, but for what did not leave as a whole.
	for stream := uint32(1); stream < c.nextStream-2; stream += 2 {
		got := c.answers[stream]
		for !got.ended {
			frame, err := c.reading.ReadFrame()
			if err == nil {
				err = c.take(frame)
			}
			if err != nil {
				t.Fatalf("stream %d: %v", stream, err)
			}
		}
		if err := got.expectStatus(codes.Unimplemented); err != nil {
			t.Fatal(err)
		}
	}
}
