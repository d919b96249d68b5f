package scenarios

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsv2 "k8s.io/kms/apis/v2"
)

// ThousandCallsAtOnce encrypts 1,000 DEKs at the same moment, through one connection and through a hundred.
func ThousandCallsAtOnce(t *testing.T) {
	const callsAtOnce = 1000
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		for _, connections := range []int{1, 100} {
			t.Run(fmt.Sprintf("connections_%d", connections), func(t *testing.T) {
				var pool []*connection
				for range connections {
					pool = append(pool, connect(t, plugin.socket, ""))
				}
				var answers [callsAtOnce]wrapped
				var allThere sync.WaitGroup
				allThere.Add(callsAtOnce)
				inParallel(t, "Encrypt", callsAtOnce, callsAtOnce, func(i int) (err error) {
					allThere.Done()
					allThere.Wait()
					answers[i], err = wireEncrypt(api, pool[i%connections], dek(i))
					return err
				})
				inParallel(t, "Decrypt", callerCount, callsAtOnce, func(i int) error {
					plaintext, err := wireDecrypt(api, pool[0], answers[i])
					if err == nil && string(plaintext) != string(dek(i)) {
						return fmt.Errorf("got another DEK than was encrypted")
					}
					return err
				})
			})
		}
	})
}

// UnknownMethodsAreUnimplemented calls what is not there: the call fails as gRPC wants it, and the connection
// goes on.
func UnknownMethodsAreUnimplemented(t *testing.T) {
	plugin := startPlugin(t, startEmulator(t), probeInterval)
	c := connect(t, plugin.socket, "")
	for _, method := range []string{
		"/v2.KeyManagementService/Reencrypt",
		"/v1beta1.KeyManagementService/Status",
		"/v3.KeyManagementService/Status",
		"/grpc.health.v1.Health/Check",
	} {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		err := c.Invoke(ctx, method, &kmsv2.StatusRequest{}, &kmsv2.StatusResponse{})
		cancel()
		if code := status.Code(err); code != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", method, err)
		}
		if err := roundTrip("v2", c, dek(0)); err != nil {
			t.Errorf("after %s: %v", method, err)
		}
	}
	if dials := c.dials.Load(); dials != 1 {
		t.Errorf("%d connections, want the first one to last", dials)
	}
}
