"""What samples of a run are conditioned on: labels as its data has them, or captions of its data."""

import json

import jax
import numpy as np
from absl import logging
from etils import epath

from tim_jax import data
from tim_jax.config.run import Run
from tim_jax.evaluation.settings import EvaluationSettings
from tim_jax.runs.input_pipeline import one_after_another, open_source_and_plan
from tim_jax.runs.labels import cycle_labels
from tim_jax.runs.restoration import open_truths
from tim_jax.system import files, jsonl

FILE = "labels.json"  # of a workdir: how often its data has each label, so that samples can be drawn where no data is


def sample_conditions(run: Run, count: int, counts: np.ndarray | None = None) -> np.ndarray | list[str]:
    """Labels or prompts of samples that are to be like the data.

    The first ones are the same whatever their number. They are those that `evaluation.labels` asks for, or captions of
    the data in a fixed shuffle; for restorations the labels or captions of the true images.

    Args:
        run: whose samples.
        count: how many.
        counts: how often the data has each label; by default `data_labels` finds out.

    Returns:
        (count,).

    Raises:
        ValueError: if labels are to be those of the data, and nothing says what these are.
    """
    of_text = run.config.model.condition == "text"
    if (truths := open_truths(run)) is not None:
        if run.evaluation.labels != EvaluationSettings.labels:  # recorded by a run that is steered only now
            logging.warning(
                "evaluation.labels is %r, which is for samples: restorations have the labels of what they restore",
                run.evaluation.labels,
            )
        return truths.captions(count) if of_text else truths(np.arange(count))[1]
    if of_text:
        return data_captions(open_source_and_plan(run)[0], count)
    counts = data_labels(run) if counts is None else counts
    if run.evaluation.labels == "balanced":
        return class_turns(counts, count)
    return data.proportional_labels(counts, count)


def data_labels(run: Run, folder: epath.Path | None = None) -> np.ndarray:
    """How often the data has each label, as its workdir says or by reading the data.

    Where neither is there, ones, if `evaluation.labels` asks for no more than a balance, and a warning.

    Args:
        run: conditioned on labels.
        folder: its workdir; None where there is none.

    Returns:
        (num_classes,).

    Raises:
        ValueError: if the data is not there, and its labels are asked for.
    """
    counts = recorded_labels(run, folder)
    if counts is not None:
        return counts
    try:
        return count_labels(run, open_source_and_plan(run)[0])
    except ValueError as error:
        if run.evaluation.labels != "balanced":
            raise ValueError(
                f"evaluation.labels is {run.evaluation.labels!r}; it must be 'balanced' where nothing says how often "
                f"each label comes in the data: {error}"
            ) from None
        logging.warning("every label of the model has its turn, as nothing says which the data has: %s", error)
        return np.ones(run.config.model.num_classes, np.int64)


def class_turns(counts: np.ndarray, count: int) -> np.ndarray:
    """Labels (count,) in turn, of those that come in the data; counts: how often each does."""
    return np.flatnonzero(counts).astype(np.int32)[cycle_labels(int(np.count_nonzero(counts)), count)]


def known_labels(run: Run, folder: epath.Path) -> np.ndarray:
    """(num_classes,) what a workdir says of how often its data has each label; ones if it says nothing of them."""
    counts = recorded_labels(run, folder)
    return np.ones(run.config.model.num_classes, np.int64) if counts is None else counts


def count_labels(run: Run, source: data.Source) -> np.ndarray:
    """(num_classes,) how often a run's source has each label. Raises ValueError if no example has one."""
    classes, directory = run.config.model.num_classes, run.inputs.directory
    counts = one_after_another(lambda: data.label_counts(source, classes, directory))
    if not counts.any():
        raise ValueError(f"data.source is {source.name}; it must have an example with a label that can be used")
    return counts


def record_labels(run: Run, source: data.Source, folder: epath.Path) -> None:
    """Writes how often the data has each label into a workdir, and warns of labels that it does not have."""
    counts = count_labels(run, source)
    warn_of_untrained(counts)
    if jax.process_index() == 0:
        write_counts(folder, counts)


def write_counts(folder: epath.Path, counts: np.ndarray) -> None:
    """Writes how often the data has each label into a workdir."""
    files.replace(folder / FILE, (json.dumps({"counts": counts.tolist()}) + "\n").encode())


def read_counts(folder: epath.Path) -> np.ndarray | None:
    """How often the data has each label, as a workdir says; None if it says nothing of them."""
    path = folder / FILE
    return np.array(jsonl.read_object(path)["counts"], np.int64) if path.exists() else None


def warn_of_untrained(counts: np.ndarray) -> None:
    """Warns of labels below model.num_classes that the data does not have: nothing is learnt of them."""
    absent = np.flatnonzero(counts == 0).tolist()
    if absent:
        named = ", ".join(map(str, absent[:4])) + (", …" if len(absent) > 4 else "")
        logging.warning(
            "model.num_classes is %d; %d of these labels (%s) are not in the data: nothing is learnt of them, and they "
            "are not measured",
            len(counts),
            len(absent),
            named,
        )


def data_captions(source: data.Source, count: int) -> list[str]:
    """Captions (count,) of a source in a fixed shuffle; "a picture" where it has none. Raises ValueError."""
    return [data.caption_at(source, i) for i in range(count)] if source.captions else [data.NO_CAPTION] * count


def recorded_labels(run: Run, folder: epath.Path | None) -> np.ndarray | None:
    """(num_classes,) what a workdir says of the labels of its data; None if it says nothing of them."""
    counts = None if folder is None else read_counts(folder)
    if counts is None:
        return None
    return counts if len(counts) == run.config.model.num_classes and counts.any() else None
