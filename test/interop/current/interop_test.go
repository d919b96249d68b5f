package current

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

func TestHandOverFarFromKey4C(t *testing.T) {
	scenarios.HandOverFarFromKey4C(t)
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

// The rest is about bytes that no release's client decides on, so it runs in this module only.

func TestEveryFormOfHeadersIsServed(t *testing.T) {
	scenarios.EveryFormOfHeadersIsServed(t)
}

func TestErrorsAreTrailersOnly(t *testing.T) {
	scenarios.ErrorsAreTrailersOnly(t)
}

func TestTransportFramesAreAnswered(t *testing.T) {
	scenarios.TransportFramesAreAnswered(t)
}

func TestEveryEncodingHasItsStatus(t *testing.T) {
	scenarios.EveryEncodingHasItsStatus(t)
}

func TestMessagesInAnyFramesAreServed(t *testing.T) {
	scenarios.MessagesInAnyFramesAreServed(t)
}

func TestUnreadAnswersAreBounded(t *testing.T) {
	scenarios.UnreadAnswersAreBounded(t)
}

func TestEncryptWaitsForTheFirstLocalKEK(t *testing.T) {
	scenarios.EncryptWaitsForTheFirstLocalKEK(t)
}

func TestTellsSystemd(t *testing.T) {
	scenarios.TellsSystemd(t)
}

func TestUnreadNotificationsHoldNothingUp(t *testing.T) {
	scenarios.UnreadNotificationsHoldNothingUp(t)
}

func TestPathOfAHeldSocketIsMissed(t *testing.T) {
	scenarios.PathOfAHeldSocketIsMissed(t)
}

func TestOthersOfSystemdAreRefused(t *testing.T) {
	scenarios.OthersOfSystemdAreRefused(t)
}

func TestHostileNeighboursHoldNobodyUp(t *testing.T) {
	scenarios.HostileNeighboursHoldNobodyUp(t)
}

func TestDoctorJudgesAsTheLoader(t *testing.T) {
	scenarios.DoctorJudgesAsTheLoader(t, client)
}
