package scenarios

import (
	"net/http"
	"net/http/httptest"
	"os/exec"
	"regexp"
	"testing"

	"k8s.io/apiserver/pkg/server/healthz"
)

// HealthChecksFollowThePlugin is about /readyz of the API server: well with the plugin, sick without it,
// well again when it is back.
func HealthChecksFollowThePlugin(t *testing.T, client Client) {
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		startAPIServer(t, client, api, plugin).expectHealthy(t, api)

		plugin.stop(t)
		// A new API server, because the old one believes its last good answer for 20 s.
		server := startAPIServer(t, client, api, plugin)
		if err := server.checkHealth(); err == nil {
			t.Fatal("the health check passes without a plugin")
		}

		plugin.start(t)
		// The API server believes a bad answer for 3 s, and its connection backs off.
		waitUntil(t, "the health check to pass again", server.checkHealth)
		server.expectHealthy(t, api)
	})
}

// LivenessWithoutThePlugin is about /livez of a release that has the checks of KMS providers there (up to 1.28:
// EtcdOptions gives them to AddHealthChecks): a plugin that is gone makes it fail, and the kubelet restarts the API server. Not at the path that `manifest kube-apiserver-patch` sets.
func LivenessWithoutThePlugin(t *testing.T, client Client) {
	manifest, err := exec.Command(pluginBinary(t), "manifest", "kube-apiserver-patch", "--config", "/dev/null").Output()
	if err != nil {
		t.Fatalf("manifest: %v", err)
	}
	found := regexp.MustCompile(`path: "(/livez[^"]*)"`).FindSubmatch(manifest)
	if found == nil {
		t.Fatalf("no path of a probe in:\n%s", manifest)
	}
	path := string(found[1])
	forEachAPI(t, func(t *testing.T, api string) {
		plugin := startPlugin(t, startEmulator(t), probeInterval)
		plugin.stop(t)
		server := startAPIServer(t, client, api, plugin)
		mux := http.NewServeMux()
		healthz.InstallLivezHandler(mux, server.healthChecks...)
		codeOf := func(path string) int {
			answer := httptest.NewRecorder()
			mux.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
			return answer.Code
		}
		if code := codeOf("/livez"); code != http.StatusInternalServerError {
			t.Errorf("/livez says %d without a plugin", code)
		}
		if code := codeOf(path); code != http.StatusOK {
			t.Errorf("%s says %d without a plugin", path, code)
		}
	})
}
