package release128

import (
	"testing"

	"key4c-kms-plugin/test/interop/scenarios"
)

func TestObjectsSurviveRestarts(t *testing.T) {
	scenarios.ObjectsSurviveRestarts(t, client)
}

func TestHealthChecksFollowThePlugin(t *testing.T) {
	scenarios.HealthChecksFollowThePlugin(t, client)
}

func TestLivenessWithoutThePlugin(t *testing.T) {
	scenarios.LivenessWithoutThePlugin(t, client)
}

func TestReloadTurnsEncryptionOn(t *testing.T) {
	scenarios.ReloadTurnsEncryptionOn(t, client)
}

func TestRotationUnderWriters(t *testing.T) {
	scenarios.RotationUnderWriters(t, client)
}

func TestEveryAuthorityIsServed(t *testing.T) {
	scenarios.EveryAuthorityIsServed(t, client)
}

func TestThousandCallsAtOnce(t *testing.T) {
	scenarios.ThousandCallsAtOnce(t)
}

func TestUnknownMethodsAreUnimplemented(t *testing.T) {
	scenarios.UnknownMethodsAreUnimplemented(t)
}

func TestRestartUnderCallers(t *testing.T) {
	scenarios.RestartUnderCallers(t)
}

func TestHandOverOfAHeldSocket(t *testing.T) {
	scenarios.HandOverOfAHeldSocket(t)
}

func TestSlowCallIsAnsweredBeforeTheEnd(t *testing.T) {
	scenarios.SlowCallIsAnsweredBeforeTheEnd(t)
}

func TestKey4CIsRarelyCalled(t *testing.T) {
	scenarios.Key4CIsRarelyCalled(t)
}

func TestKilledPluginIsWaitedFor(t *testing.T) {
	scenarios.KilledPluginIsWaitedFor(t)
}

func TestPluginStartsAfterAPIServer(t *testing.T) {
	scenarios.PluginStartsAfterAPIServer(t, client)
}

func TestCancelledCallFillsTheCache(t *testing.T) {
	scenarios.CancelledCallFillsTheCache(t)
}

func TestNeighboursHoldNobodyUp(t *testing.T) {
	scenarios.NeighboursHoldNobodyUp(t)
}
