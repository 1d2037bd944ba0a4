"""Sound files become waveforms, or say why not; eight bits lose what they should and no more."""

from pathlib import Path

import numpy as np
import pytest

from worldmodel.experiments.speech.data import audio

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")


def tone(rate: int = 8000, seconds: float = 0.25, pitch: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_the_mu_law_code_of_what_a_code_stands_for_is_that_code():
    codes = np.arange(256, dtype=np.uint8)
    levels = audio.mu_law_decode(codes)
    assert levels.dtype == np.float32 and (np.diff(levels) > 0).all() and (levels[0], levels[-1]) == (-1, 1)
    assert np.array_equal(audio.mu_law_encode(levels), codes)


def test_silence_is_code_128_and_what_is_too_loud_is_clipped():
    assert audio.mu_law_encode(np.zeros((2, 3))).tolist() == [[audio.SILENCE] * 3] * 2
    assert audio.mu_law_encode(np.array([-7.0, -np.inf, 7.0, np.inf])).tolist() == [0, 0, 255, 255]
    with pytest.raises(ValueError, match="some are NaN"):
        audio.mu_law_encode(np.array([0, np.nan]))


def test_mu_law_is_wrong_by_a_few_percent_of_a_sample_at_most():
    waveform = np.linspace(-1, 1, 10_001)
    wrong = abs(audio.mu_law_decode(audio.mu_law_encode(waveform)) - waveform)
    assert (wrong <= 0.023 * abs(waveform) + 1e-4).all()


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_what_is_saved_is_loaded_again(tmp_path, name):
    waveform = tone()
    audio.save(tmp_path / "deep" / "a.wav", waveform, 8000)
    soundfile.write(tmp_path / "deep" / "a.flac", waveform, 8000)
    loaded = audio.load(tmp_path / "deep" / name, 8000)
    assert loaded.dtype == np.float32 and abs(loaded - waveform).max() < 2**-15
    assert not list(tmp_path.rglob(".*")), "nothing temporary stays"
    assert audio.read_header(tmp_path / "deep" / name) == (len(waveform), 8000)


def test_only_a_waveform_can_be_saved(tmp_path):
    for wrong in (np.zeros((2, 8)), np.array([0, np.inf])):
        with pytest.raises(ValueError, match="must be finite numbers"):
            audio.save(tmp_path / "a.wav", wrong, 8000)
    audio.save(tmp_path / "a.wav", np.array([3.0, -3.0]), 8000)
    assert abs(audio.load(tmp_path / "a.wav", 8000) - [1, -1]).max() < 1e-4


@pytest.mark.parametrize(("there", "rate"), [(44_100, 16_000), (8000, 16_000), (22_050, 16_000)])
def test_another_rate_is_resampled(tmp_path, there, rate):
    soundfile.write(tmp_path / "a.wav", tone(there), there)
    loaded = audio.load(tmp_path / "a.wav", rate)
    assert abs(len(loaded) - rate // 4) <= 1
    middle = slice(rate // 20, rate // 5)  # a resampler rings at the ends
    assert abs(loaded - np.resize(tone(rate), len(loaded)))[middle].max() < 0.01


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(), 0 * tone()], 1), 8000)
    assert abs(audio.load(tmp_path / "a.wav", 8000) - tone() / 2).max() < 2**-14


def test_all_sounds_are_as_loud_but_those_that_are_nothing_but_noise():
    for factor in (2.0, 0.3, 0.02):
        assert float(np.sqrt(np.mean(audio.normalize_loudness(factor * tone()) ** 2))) == pytest.approx(
            audio.TARGET_RMS, rel=1e-5
        )
    assert np.array_equal(audio.normalize_loudness(np.zeros(9, np.float32)), np.zeros(9))
    assert abs(audio.normalize_loudness(1e-5 * tone())).max() == pytest.approx(100 * 1e-5 * abs(tone()).max())


def test_pauses_make_a_sound_no_louder_and_nothing_is_clipped():
    paused = np.concatenate([tone(), np.zeros(40_000, np.float32)])
    assert np.allclose(audio.normalize_loudness(paused)[:256], audio.normalize_loudness(tone())[:256], rtol=0.05)
    click = np.zeros(1000, np.float32)
    click[500] = 0.4
    assert abs(audio.normalize_loudness(click)).max() <= 1
    assert audio.normalize_loudness(np.full(1, 0.5, np.float32)) == pytest.approx(audio.TARGET_RMS)


def test_silence_is_a_sound(tmp_path):
    audio.save(tmp_path / "a.wav", np.zeros(100), 8000)
    assert (audio.mu_law_encode(audio.load(tmp_path / "a.wav", 8000)) == audio.SILENCE).all()


def test_floats_beyond_one_are_clipped_and_of_another_scale_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", 3 * tone(), 8000, subtype="FLOAT")
    assert audio.load(tmp_path / "a.wav", 8000).max() == 1
    soundfile.write(tmp_path / "a.wav", 30_000 * tone(), 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav holds samples up to 1\d+, expected -1 to 1; scale them"):
        audio.load(tmp_path / "a.wav", 8000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, value):
    waveform = tone()
    waveform[7] = value
    soundfile.write(tmp_path / "a.wav", waveform, 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav holds samples that are no finite numbers"):
        audio.load(tmp_path / "a.wav", 16_000)


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize("kept", [0.01, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name, kept):
    path = tmp_path / name
    soundfile.write(path, tone(), 8000)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match=rf"{name} is (cut off|no sound file, or damaged)"):
        audio.load(path, 8000)


def test_a_flac_file_written_to_a_pipe_says_not_how_long_it_is(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(), 8000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # the last 36 bits of these, the number of samples, are 0 if it is unknown
    data[22:26] = bytes(4)
    path.write_bytes(data)
    for read in (audio.read_header, lambda path: audio.load(path, 8000)):
        with pytest.raises(ValueError, match=r"a\.flac does not say how long it is; encode it into a file"):
            read(path)


def test_a_wav_file_written_to_a_pipe_claims_no_size(tmp_path):
    audio.save(tmp_path / "a.wav", tone(), 8000)
    whole = bytearray((tmp_path / "a.wav").read_bytes())
    whole[4:8] = whole[40:44] = b"\xff" * 4
    (tmp_path / "a.wav").write_bytes(whole)
    assert len(audio.load(tmp_path / "a.wav", 8000)) == len(tone())


def test_what_is_no_sound_is_refused(tmp_path):
    for content in (b"", b"hello, this is text", b"RIFF\0\0"):
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.wav is no sound file, or damaged"):
            audio.load(tmp_path / "a.wav", 8000)
        with pytest.raises(ValueError, match=r"a\.wav is no sound file, or damaged"):
            audio.read_header(tmp_path / "a.wav")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*b\.wav"):
        audio.load(tmp_path / "b.wav", 8000)
    with pytest.raises(ValueError, match="1 sample a second or more, got 0"):
        audio.load(tmp_path / "a.wav", 0)


def test_a_file_without_samples_is_refused(tmp_path: Path):
    audio.save(tmp_path / "a.wav", np.zeros(0), 8000)
    for rate in (8000, 16_000):
        with pytest.raises(ValueError, match=r"a\.wav is empty: it holds 0 samples"):
            audio.load(tmp_path / "a.wav", rate)


def test_without_the_packages_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(ImportError, match=r'sound needs the package soundfile: pip install "worldmodel\[audio\]"'):
        audio.save(tmp_path / "a.wav", np.zeros(4), 8000)
