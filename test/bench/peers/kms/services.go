package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What a call is counted as.
const (
	encrypt = "encrypt"
	decrypt = "decrypt"
	other   = "other"
	login   = "login"
)

const (
	mark     = "F1."
	awsKey   = "arn:aws:kms:us-east-1:1:key/k"
	azureKey = "https://testvault.vault.azure.net/keys/k/v"
	gcpKey   = "projects/p/locations/l/keyRings/r/cryptoKeys/k"
)

// service is the REST API of one KMS.
type service struct {
	contentType    string
	operation      func(*http.Request) string
	answer         func(operation string, r *http.Request, body []byte) (int, string)
	disabledStatus int
	disabled       string
}

func serviceOf(r *http.Request) *service {
	path := r.URL.Path
	switch {
	case r.Header.Get("X-Amz-Target") != "":
		return &aws
	case strings.HasPrefix(path, "/v1/keys/"):
		return &key4c
	case strings.HasSuffix(path, "/oauth2/token"), strings.HasPrefix(path, "/testvault.vault.azure.net/"):
		return &azure
	case strings.HasPrefix(path, "/v1/projects/"):
		return &gcp
	case strings.HasPrefix(path, "/v1/transit/"), strings.HasPrefix(path, "/v1/auth/token/"):
		return &vault
	}
	return &ovh
}

var key4c = service{
	contentType: "application/json",
	operation:   lastWord("/"),
	answer: func(operation string, _ *http.Request, body []byte) (int, string) {
		switch operation {
		case encrypt:
			return ok(`{"ciphertext":%q,"version":1}`, wrap(member(body, "plaintext")))
		case decrypt:
			return unwrapped(member(body, "ciphertext"), `{"plaintext":%q}`)
		}
		return ok(`{"keyId":"key-1","algorithm":"AES","version":1,"state":"ENABLED"}`)
	},
	disabledStatus: http.StatusConflict,
	disabled:       `{"code":"KEY_DISABLED","message":"key is disabled"}`,
}

var aws = service{
	contentType: "application/x-amz-json-1.1",
	operation: func(r *http.Request) string {
		return known(strings.ToLower(strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "TrentService.")))
	},
	answer: func(operation string, _ *http.Request, body []byte) (int, string) {
		const rest = `"KeyId":"` + awsKey + `","EncryptionAlgorithm":"SYMMETRIC_DEFAULT"}`
		if operation == encrypt {
			return ok(`{"CiphertextBlob":%q,`+rest, wrap(member(body, "Plaintext")))
		}
		return unwrapped(member(body, "CiphertextBlob"), `{"Plaintext":%q,`+rest)
	},
	disabledStatus: http.StatusBadRequest,
	disabled:       `{"__type":"DisabledException","message":"key is disabled"}`,
}

var azure = service{
	contentType: "application/json",
	operation: func(r *http.Request) string {
		if strings.HasSuffix(r.URL.Path, "/oauth2/token") {
			return login
		}
		return lastWord("/")(r)
	},
	answer: func(operation string, _ *http.Request, body []byte) (int, string) {
		if operation == login {
			return ok(`{"access_token":"x","token_type":"Bearer","expires_in":"3600","expires_on":"%d","not_before":"0","resource":"https://vault.azure.net"}`,
				time.Now().Add(time.Hour).Unix())
		}
		value, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(member(body, "value"), "="))
		if err != nil {
			return malformed()
		}
		if operation == encrypt {
			value = append([]byte(mark), value...)
		} else {
			value = bytes.TrimPrefix(value, []byte(mark))
		}
		return ok(`{"kid":%q,"value":%q}`, azureKey, base64.RawURLEncoding.EncodeToString(value))
	},
	disabledStatus: http.StatusForbidden,
	disabled:       `{"error":{"code":"Forbidden","message":"key is disabled"}}`,
}

var gcp = service{
	contentType: "application/json",
	operation:   lastWord(":"),
	answer: func(operation string, _ *http.Request, body []byte) (int, string) {
		switch operation {
		case encrypt:
			return ok(`{"name":%q,"ciphertext":%q}`, gcpKey+"/cryptoKeyVersions/1", wrap(member(body, "plaintext")))
		case decrypt:
			return unwrapped(member(body, "ciphertext"), `{"plaintext":%q}`)
		}
		return ok(`{"permissions":["cloudkms.cryptoKeyVersions.useToEncrypt","cloudkms.cryptoKeyVersions.useToDecrypt"]}`)
	},
	disabledStatus: http.StatusBadRequest,
	disabled:       `{"error":{"code":400,"message":"key version is not enabled","status":"FAILED_PRECONDITION"}}`,
}

var vault = service{
	contentType: "application/json",
	operation: func(r *http.Request) string {
		word, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v1/transit/"), "/")
		if strings.HasPrefix(r.URL.Path, "/v1/auth/") {
			return login
		}
		return known(word)
	},
	answer: func(operation string, r *http.Request, body []byte) (int, string) {
		const version = "vault:v1:"
		switch {
		case operation == encrypt:
			return ok(`{"data":{"ciphertext":%q,"key_version":1}}`, version+wrap(member(body, "plaintext")))
		case operation == decrypt:
			return unwrapped(strings.TrimPrefix(member(body, "ciphertext"), version), `{"data":{"plaintext":%q}}`)
		case strings.HasSuffix(r.URL.Path, "renew-self"):
			return ok(`{"auth":{"client_token":"x","lease_duration":3600,"renewable":true}}`)
		case operation == login:
			return ok(`{"data":{"id":"x","ttl":3600,"creation_ttl":3600,"renewable":true,"policies":["root"]}}`)
		}
		return ok(`{"data":{"latest_version":1,"name":"kms","type":"aes256-gcm96"}}`)
	},
	disabledStatus: http.StatusForbidden,
	disabled:       `{"errors":["permission denied"]}`,
}

var ovh = service{
	contentType: "application/json",
	operation:   lastWord("/"),
	answer: func(operation string, r *http.Request, body []byte) (int, string) {
		switch operation {
		case encrypt:
			return ok(`{"ciphertext":%q}`, wrap(member(body, "plaintext")))
		case decrypt:
			return unwrapped(member(body, "ciphertext"), `{"plaintext":%q}`)
		}
		id := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
		return ok(`{"id":%q,"name":"n","type":"oct","size":256,"operations":["encrypt","decrypt"],"state":"active","created_at":"2026-01-01T00:00:00Z","curve":null,"context":"c","protectionLevel":"software"}`, id)
	},
	disabledStatus: http.StatusForbidden,
	disabled:       `{"error":{"code":"Forbidden","message":"key is disabled"},"message":"key is disabled"}`,
}

func known(word string) string {
	if word == encrypt || word == decrypt {
		return word
	}
	return other
}

func lastWord(separator string) func(*http.Request) string {
	return func(r *http.Request) string {
		return known(r.URL.Path[strings.LastIndex(r.URL.Path, separator)+1:])
	}
}

func member(body []byte, name string) string {
	var members map[string]any
	if json.Unmarshal(body, &members) != nil {
		return ""
	}
	text, _ := members[name].(string)
	return text
}

func ok(format string, values ...any) (int, string) {
	return http.StatusOK, fmt.Sprintf(format, values...)
}

func malformed() (int, string) {
	return http.StatusBadRequest, `{"code":"INVALID_CIPHERTEXT","message":"malformed"}`
}

// wrap takes and returns base64.
func wrap(plaintext string) string {
	bytes, _ := base64.StdEncoding.DecodeString(plaintext)
	return base64.StdEncoding.EncodeToString(append([]byte(mark), bytes...))
}

func unwrapped(ciphertext, format string) (int, string) {
	value, err := base64.StdEncoding.DecodeString(ciphertext)
	if err != nil || !bytes.HasPrefix(value, []byte(mark)) {
		return malformed()
	}
	return ok(format, base64.StdEncoding.EncodeToString(value[len(mark):]))
}
