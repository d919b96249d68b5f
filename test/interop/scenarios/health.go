package scenarios

import "testing"

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
