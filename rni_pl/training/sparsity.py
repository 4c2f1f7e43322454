"""Stage 1: sparsity training."""

from pathlib import Path

import pytorch_lightning as pl
from omegaconf import DictConfig

from rni_pl.callbacks import History, Shrink, SparsityRegulariser
from rni_pl.config import plain
from rni_pl.regularisers import Regulariser
from rni_pl.runs import directory, resume
from rni_pl.runs.files import SUMMARY, write_json
from rni_pl.runs.summary import Figures, Outcome, of_training
from rni_pl.training import fitting
from rni_pl.training.losses import CrossEntropy
from rni_pl.training.network import new_classifier
from rni_pl.training.trainer import make_trainer


def train(config: DictConfig, run_dir: Path, watch_test: bool = False) -> Outcome:
    """Train as configured; everything that can be wrong is found before the first step.

    `watch_test` logs the test accuracy of every epoch, for watching only.
    """
    last = resume.begin(config)
    regulariser = fitting.make(config.method, "method", Regulariser)
    recipe = fitting.make_recipe(config)
    data = fitting.make_data(config, watch_test)
    pl.seed_everything(config.seed, verbose=False)
    classifier = new_classifier(config, data, regulariser, recipe, warm=last is None)
    shrink: list[pl.Callback] = []
    if config.shrink.every:
        classifier.shrinks() if last is None else classifier.take_sizes(last)
        settings = plain(config.shrink)
        shrink = [Shrink(options={"coupled": settings.pop("coupled")}, **settings)]
    classifier.loss = CrossEntropy.of(data, **config.loss)
    fitting.check(config, classifier, data, last)
    history = History(costs=bool(shrink))
    callbacks: list[pl.Callback] = [SparsityRegulariser(regulariser), *shrink, history]
    trainer = make_trainer(config, run_dir, callbacks)

    with directory.written(trainer, config, run_dir):
        fitting.fit(trainer, classifier, data, run_dir, last, config.compile)
    test_acc = fitting.test(trainer, classifier, data)

    record, spec = history.record, classifier.spec
    found = Figures.of(classifier.model, spec.image_shape, test_acc)
    summary = of_training(spec, found, record, trainer.current_epoch)
    summary |= {"precision": trainer.precision, "seed": config.seed}
    if trainer.is_global_zero:
        write_json(summary, run_dir / SUMMARY)
        fitting.log_hyperparameters(trainer, config, summary)
    return Outcome(fitting.finished(classifier), record, summary)
