// Command each is a bare grpc-go server that asks its KMS for every DEK, as other plugins do, and does nothing else: no
// login, no signature of requests, no metrics. So it is what they cannot be faster than. Its KMS is the fake one, by Key4C's
// API.
//
//	each SOCKET URL
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"

	"google.golang.org/grpc"
	v1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

const keyID = "key-1"

func main() {
	if len(os.Args) != 3 {
		log.Fatal("each SOCKET URL")
	}
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 256 // else most calls would make a connection
	remote := kms{url: os.Args[2] + "/v1/keys/" + keyID, client: &http.Client{Transport: transport}}
	server := grpc.NewServer()
	v1.RegisterKeyManagementServiceServer(server, &serverV1{kms: remote})
	v2.RegisterKeyManagementServiceServer(server, &serverV2{kms: remote})
	log.Fatal(server.Serve(listener))
}

type kms struct {
	url    string
	client *http.Client
}

// blob has one of the two in each request and answer.
type blob struct {
	Plaintext  []byte `json:"plaintext,omitempty"`
	Ciphertext []byte `json:"ciphertext,omitempty"`
}

func (k kms) call(ctx context.Context, method, path string, in blob) (out blob, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	request, err := http.NewRequestWithContext(ctx, method, k.url+path, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	answer, err := k.client.Do(request)
	if err != nil {
		return out, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return out, fmt.Errorf("the KMS answers %d", answer.StatusCode)
	}
	return out, json.NewDecoder(answer.Body).Decode(&out)
}

func (k kms) wrap(ctx context.Context, plaintext []byte) ([]byte, error) {
	out, err := k.call(ctx, http.MethodPost, "/encrypt", blob{Plaintext: plaintext})
	return out.Ciphertext, err
}

func (k kms) unwrap(ctx context.Context, ciphertext []byte) ([]byte, error) {
	out, err := k.call(ctx, http.MethodPost, "/decrypt", blob{Ciphertext: ciphertext})
	return out.Plaintext, err
}

type serverV1 struct {
	kms
	v1.UnimplementedKeyManagementServiceServer
}

func (s *serverV1) Version(context.Context, *v1.VersionRequest) (*v1.VersionResponse, error) {
	return &v1.VersionResponse{Version: "v1beta1", RuntimeName: "each"}, nil
}

func (s *serverV1) Encrypt(ctx context.Context, in *v1.EncryptRequest) (*v1.EncryptResponse, error) {
	ciphertext, err := s.wrap(ctx, in.Plain)
	return &v1.EncryptResponse{Cipher: ciphertext}, err
}

func (s *serverV1) Decrypt(ctx context.Context, in *v1.DecryptRequest) (*v1.DecryptResponse, error) {
	plaintext, err := s.unwrap(ctx, in.Cipher)
	return &v1.DecryptResponse{Plain: plaintext}, err
}

type serverV2 struct {
	kms
	v2.UnimplementedKeyManagementServiceServer
}

func (s *serverV2) Status(ctx context.Context, _ *v2.StatusRequest) (*v2.StatusResponse, error) {
	_, err := s.call(ctx, http.MethodGet, "", blob{})
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: keyID}, err
}

func (s *serverV2) Encrypt(ctx context.Context, in *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	ciphertext, err := s.wrap(ctx, in.Plaintext)
	return &v2.EncryptResponse{Ciphertext: ciphertext, KeyId: keyID}, err
}

func (s *serverV2) Decrypt(ctx context.Context, in *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	plaintext, err := s.unwrap(ctx, in.Ciphertext)
	return &v2.DecryptResponse{Plaintext: plaintext}, err
}
