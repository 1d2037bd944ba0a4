"""Map codes to phonemes and test the map: ``python -m worldmodel.experiments.speech phonemes``."""

import json
from pathlib import Path

from tqdm import tqdm

from worldmodel.files import check_folder, write_atomically


def phonemes(runs: str, speech: str, out: str, recordings: int = 1000, device: str = "cpu", threads: int = 1) -> None:
    """Map every code to its most likely phoneme, and test the map on speech not trained on.

    The map is fitted on the training recordings and tested on other sentences (held_out) and other speakers
    (unseen_speakers). The baselines are the most frequent phoneme, random codes, and k-means codes of log-mel
    spectrograms, with and without each recording's mean, and of 13 MFCCs whose mean and variance are normalized per
    recording, with as many codes and seeds as the runs, which should differ in their seeds only. A linear probe
    predicts the speaker from an utterance's codes, and from its spectrogram. Intervals are 95 %, over sentences. The
    folder ``out`` gets phonemes.json and phonemes.txt.

    Args:
        runs: run folders of speech VQ-VAEs, separated by commas.
        speech: folder or CSV file of the recordings that the runs were trained on. Those with a .phn file beside them
            are scored: TIMIT's, or those that synthesize makes.
        out: folder to write.
        recordings: maximum number of recordings per split, evenly spaced.
        device: device of the VQ-VAEs, cpu or cuda.
        threads: number of CPU threads of torch.
    """
    from worldmodel.experiments.speech import phoneme_scores as scores
    from worldmodel.experiments.speech.codec import SpeechCodec, check_same_speech
    from worldmodel.experiments.speech.data.corpora import SPLITS
    from worldmodel.experiments.speech.data.dataset import open_speech
    from worldmodel.experiments.speech.phoneme_maps import (
        FEATURES,
        ROWS,
        PhonemeData,
        format_table,
        kmeans_codes,
        model_codes,
        probe_speaker,
        random_baseline,
        score_codes,
        score_majority,
    )
    from worldmodel.models.precision import use_threads

    if recordings < 1:
        raise ValueError(f"--recordings must be 1 or more, got {recordings}")
    check_folder(Path(out))
    use_threads(threads)
    codecs = {folder: SpeechCodec.load(folder, device) for folder in runs.split(",")}
    first = next(iter(codecs.values()))
    hop, size = first.hop, first.codebook_size
    data = open_speech(speech, first.rate)
    for folder, codec in codecs.items():
        if (codec.hop, codec.codebook_size) != (hop, size):
            raise ValueError(
                f"{folder} has {codec.codebook_size} codes of {codec.hop} samples; --runs must agree, {size} of {hop}"
            )
        check_same_speech(codec.run, data)
    labeled, seeds = PhonemeData(data, hop, recordings), range(len(codecs))
    counts = {split: len(indices) for split, (_, indices) in labeled.splits.items()}
    totals = {split: len(part) for split in SPLITS if (part := getattr(data, split))}
    print(f"scored: {', '.join(f'{counts.get(split, 0)} of {total} {split}' for split, total in totals.items())}")
    rows = {"majority": [score_majority(labeled)]}
    rows["random_codes"] = [score_codes(labeled, random_baseline(labeled, size, seed), size) for seed in seeds]
    for name, features_of in FEATURES.items():
        bar = tqdm(seeds, unit="seed", desc=ROWS[name], leave=False)
        rows[name] = [score_codes(labeled, kmeans_codes(labeled, size, seed, features_of), size) for seed in bar]
    rows["vqvae"] = [score_codes(labeled, model_codes(labeled, codec), size) for codec in codecs.values()]
    mel_moments = {split: scores.moments_over_time(features) for split, features in labeled.mels.items()}
    result = {
        "settings": {"runs": runs, "speech": speech, "recordings": recordings},
        "codebook_size": size,
        "codes_per_second": first.rate / hop,
        "recordings": counts,
        "frames": {split: sum(map(len, labels)) for split, labels in labeled.labels.items()},
        "rows": rows,
        "log_mel_speaker_accuracy": probe_speaker(labeled, mel_moments),
    }
    text = format_table(rows)
    Path(out).mkdir(parents=True, exist_ok=True)
    write_atomically(Path(out) / "phonemes.json", json.dumps(result, indent=2).encode())
    write_atomically(Path(out) / "phonemes.txt", f"{text}\n".encode())
    print(text)
    print(f"speaker from log-mel: {100 * result['log_mel_speaker_accuracy']['mean']:.1f} %")
