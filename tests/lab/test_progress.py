"""Long work shows how far it is, also where nobody looks at a terminal."""

import pytest

from detectors import registry
from detectors.methods.twins import COPIED, SMALL
from lab.forecast import Pace, forecast
from lab.progress import duration, progress


def test_a_log_gets_a_line_for_each_quarter_of_a_stage_and_stdout_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as watch:
        for done in range(101):
            watch("digging", done / 100)
        watch("filling in", 0.0)

    shown = capfd.readouterr()
    assert not shown.out
    stages = [line.partition(" s  ")[2] for line in shown.err.splitlines()]
    assert stages == ["digging 0 %", "digging 25 %", "digging 50 %", "digging 75 %", "digging 100 %", "filling in 0 %"]


def test_how_long_it_will_take_is_told_first_and_corrected_on_the_way(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as watch:
        watch.expect({"digging": 9000.0, "filling in": 3000.0})
        watch("digging", 0.0)
        watch("measuring", 1.0)
        watch("digging", 1.0)

    shown = [line.partition(" s  ")[2] for line in capfd.readouterr().err.splitlines()]
    assert shown[0] == "about 3 h 20 min in all"
    assert shown[1] == "digging 0 %, about 3 h 20 min left"
    assert shown[2] == "measuring 100 %, about 3 h 20 min left"
    assert shown[3] == "digging 100 %, about 0 s left"  # 9000 s went by in no time, and so will the rest


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (91, "2 min"), (5300, "88 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_forecast_grows_with_model_and_scans() -> None:
    pace = Pace(ahead=0.1, there_and_back=0.3, small=0.02, denoising={"dncnn": 0.01})
    told = {"held": 200, "a": 200, "test": 60, "rounds": 0, "recipes": (COPIED, SMALL), "methods": registry.DEFAULT}

    some, more = (forecast(pace, fit=count, gradients=True, **told) for count in (800, 1600))
    blind = forecast(pace, fit=800, gradients=False, **told)
    once, twice = (forecast(pace, fit=800, gradients=True, **told | {"rounds": count}) for count in (1, 2))

    assert some["hardening the copied twin"] == pytest.approx(COPIED.steps * COPIED.batch * (7 * 0.3 + 0.1))
    assert more["hardening the copied twin"] == some["hardening the copied twin"]  # it takes so many steps, no more
    assert more["attacking for the denoisers"] == 2 * some["attacking for the denoisers"]
    assert more["measuring"] == some["measuring"]
    assert "hardening the copied twin" not in blind
    assert twice["fitting fusion"] == 2 * once["fitting fusion"] > 0
    assert blind["simulating attacks"] == some["simulating attacks"]
