package main

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"k8s.io/kms/apis/v1beta1"
	"k8s.io/kms/apis/v2"
)

// As kube-apiserver makes them: a DEK of 32 bytes, and a UUID.
const (
	dekBytes = 32
	uid      = "7b3f1a52-5d0e-4f6b-9f3a-0c6f2f1f9a11"
)

// repeatable makes the call to repeat; a decrypt repeats one ciphertext.
func repeatable(conn *grpc.ClientConn, api, operation string) (func() error, error) {
	dek := make([]byte, dekBytes)
	if _, err := rand.Read(dek); err != nil {
		return nil, err
	}
	ctx := context.Background()
	one := v1beta1.NewKeyManagementServiceClient(conn)
	two := v2.NewKeyManagementServiceClient(conn)
	switch api + " " + operation {
	case "v2 status":
		return func() error { _, err := two.Status(ctx, &v2.StatusRequest{}); return err }, nil
	case "v1 encrypt":
		request := &v1beta1.EncryptRequest{Version: "v1beta1", Plain: dek}
		return func() error { _, err := one.Encrypt(ctx, request); return err }, nil
	case "v2 encrypt":
		request := &v2.EncryptRequest{Plaintext: dek, Uid: uid}
		return func() error { _, err := two.Encrypt(ctx, request); return err }, nil
	case "v1 decrypt":
		wrapped, err := one.Encrypt(ctx, &v1beta1.EncryptRequest{Version: "v1beta1", Plain: dek},
			grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		request := &v1beta1.DecryptRequest{Version: "v1beta1", Cipher: wrapped.Cipher}
		return func() error { _, err := one.Decrypt(ctx, request); return err }, nil
	case "v2 decrypt":
		wrapped, err := two.Encrypt(ctx, &v2.EncryptRequest{Plaintext: dek, Uid: uid},
			grpc.WaitForReady(true))
		if err != nil {
			return nil, err
		}
		request := &v2.DecryptRequest{
			Ciphertext:  wrapped.Ciphertext,
			KeyId:       wrapped.KeyId,
			Annotations: wrapped.Annotations,
			Uid:         uid,
		}
		return func() error { _, err := two.Decrypt(ctx, request); return err }, nil
	}
	return nil, fmt.Errorf("no operation %s %s", api, operation)
}

func runReference(socket string) error {
	key := make([]byte, 32)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	v1beta1.RegisterKeyManagementServiceServer(server, &referenceV1{local: local{aead}})
	v2.RegisterKeyManagementServiceServer(server, &referenceV2{local: local{aead}})
	return server.Serve(listener)
}

// local wraps with AES-256-GCM under a key in memory.
type local struct {
	aead cipher.AEAD
}

func (l local) seal(plaintext []byte) ([]byte, error) {
	iv := make([]byte, l.aead.NonceSize())
	if _, err := rand.Read(iv); err != nil {
		return nil, err
	}
	return l.aead.Seal(iv, iv, plaintext, nil), nil
}

func (l local) open(sealed []byte) ([]byte, error) {
	size := l.aead.NonceSize()
	if len(sealed) < size {
		return nil, fmt.Errorf("%d bytes are no ciphertext", len(sealed))
	}
	return l.aead.Open(nil, sealed[:size], sealed[size:], nil)
}

type referenceV1 struct {
	local
	v1beta1.UnimplementedKeyManagementServiceServer
}

func (r *referenceV1) Version(context.Context, *v1beta1.VersionRequest) (*v1beta1.VersionResponse, error) {
	return &v1beta1.VersionResponse{Version: "v1beta1", RuntimeName: "reference"}, nil
}

func (r *referenceV1) Encrypt(_ context.Context, in *v1beta1.EncryptRequest) (*v1beta1.EncryptResponse, error) {
	sealed, err := r.seal(in.Plain)
	return &v1beta1.EncryptResponse{Cipher: sealed}, err
}

func (r *referenceV1) Decrypt(_ context.Context, in *v1beta1.DecryptRequest) (*v1beta1.DecryptResponse, error) {
	plaintext, err := r.open(in.Cipher)
	return &v1beta1.DecryptResponse{Plain: plaintext}, err
}

type referenceV2 struct {
	local
	v2.UnimplementedKeyManagementServiceServer
}

func (r *referenceV2) Status(context.Context, *v2.StatusRequest) (*v2.StatusResponse, error) {
	return &v2.StatusResponse{Version: "v2", Healthz: "ok", KeyId: "reference"}, nil
}

func (r *referenceV2) Encrypt(_ context.Context, in *v2.EncryptRequest) (*v2.EncryptResponse, error) {
	sealed, err := r.seal(in.Plaintext)
	return &v2.EncryptResponse{Ciphertext: sealed, KeyId: "reference"}, err
}

func (r *referenceV2) Decrypt(_ context.Context, in *v2.DecryptRequest) (*v2.DecryptResponse, error) {
	plaintext, err := r.open(in.Ciphertext)
	return &v2.DecryptResponse{Plaintext: plaintext}, err
}
