"""Models, batches, collators and schedules of Hugging Face's transformers, from configurations without downloads."""

import pytest
import torch
from torch.utils.data import DataLoader

from camshaft.engine import Engine, Events
from camshaft.handlers import (
    AMP,
    EMA,
    Checkpoint,
    Device,
    Evaluate,
    GradientAccumulation,
    LRScheduler,
    Metrics,
    OptimizerStep,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")

from ignite.metrics import Accuracy, Average  # noqa: E402
from transformers import (  # noqa: E402
    BatchEncoding,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    get_linear_schedule_with_warmup,
)
from transformers.data.data_collator import default_data_collator  # noqa: E402

SENTENCES = [
    {"input_ids": torch.randint(30, (8,), generator=torch.Generator().manual_seed(index)), "labels": index % 2}
    for index in range(12)
]


def bert():
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )


def gpt():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=16, n_embd=8, n_layer=1, n_head=2))


def as_encoding(samples):
    """A batch as tokenizers give it."""
    return BatchEncoding(dict(default_data_collator(samples)))


def loader(collate_fn=default_data_collator):
    return DataLoader(SENTENCES, batch_size=4, shuffle=True, collate_fn=collate_fn)


def trainer_of(model, *handlers):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    return Engine(lambda engine, batch: model(**batch)).attach(OptimizerStep(optimizer), *handlers)


@pytest.mark.parametrize("collate_fn", [default_data_collator, as_encoding], ids=["dict", "BatchEncoding"])
def test_what_the_model_returns_is_what_the_step_returns(collate_fn):
    model = bert()
    engine = trainer_of(model, Device("cpu"))
    losses = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(engine.state.output.loss.item()))
    engine.run(loader(collate_fn), max_epochs=10)
    assert engine.state.optimizer_step == 30
    assert losses[-1] < losses[0]


def test_the_output_keeps_its_class_and_loses_its_graph():
    output = trainer_of(bert()).run(loader()).output
    assert type(output).__name__ == "SequenceClassifierOutput"
    assert (output.loss.requires_grad, output.logits.requires_grad, output["logits"].requires_grad) == (False,) * 3


def test_a_batch_encoding_is_moved_to_the_device():
    engine = Engine(lambda engine, batch: batch["input_ids"].device.type).attach(Device("meta"))
    state = engine.run(loader(as_encoding))
    assert (state.output, type(state.batch)) == ("meta", BatchEncoding)
    assert engine.run(loader()).output == "meta"


def test_a_language_model_trains_with_the_collators_labels_in_mixed_precision_with_accumulation_and_averages():
    model = gpt()
    sentences = [{"input_ids": one["input_ids"], "labels": one["input_ids"]} for one in SENTENCES]
    data = DataLoader(sentences, batch_size=2, collate_fn=default_data_collator)
    average = EMA(model, decay=0.5)
    engine = trainer_of(model, AMP("bf16"), GradientAccumulation(2), average)
    output = engine.run(data, max_epochs=2).output
    assert engine.state.optimizer_step == 6
    assert output.logits.dtype == torch.bfloat16
    assert torch.isfinite(output.loss)


def test_its_schedules_are_stepped_with_the_optimizer():
    model, rates = bert(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=2, num_training_steps=6)
    engine = Engine(lambda engine, batch: model(**batch))
    engine.attach(OptimizerStep(optimizer), LRScheduler(schedule, per="step"))
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: rates.append(round(optimizer.param_groups[0]["lr"], 6)))
    engine.run(loader(), max_epochs=2)
    assert rates == [0.0, 0.005, 0.01, 0.0075, 0.005, 0.0025]


def test_an_evaluation_measures_logits_and_loss_in_evaluation_mode():
    model = bert()
    seen = []

    def evaluation_step(engine, batch):
        seen.append((model.training, torch.is_grad_enabled()))
        output = model(**batch)
        return {"y_pred": output.logits, "y": batch["labels"], "loss": output.loss}

    evaluator = Engine(evaluation_step).attach(
        Metrics(accuracy=Accuracy(), loss=Average(output_transform=lambda output: output["loss"]))
    )
    metrics = trainer_of(model, Evaluate(evaluator, loader())).run(loader()).metrics
    assert metrics.keys() == {"val_accuracy", "val_loss"}
    assert seen == [(False, False)] * 3
    assert model.training


def test_a_killed_run_goes_on_to_the_same_bits_with_dropout_and_a_schedule(tmp_path):
    def run(directory, kill_at=None):
        model = bert()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        schedule = LRScheduler(get_linear_schedule_with_warmup(optimizer, 2, 9), per="step")
        keep = Checkpoint(directory, model=model, optimizer=optimizer, at=Events.ITERATION_COMPLETED(every=2))
        engine = Engine(lambda engine, batch: model(**batch)).attach(OptimizerStep(optimizer), schedule, keep)

        @engine.on(Events.ITERATION_COMPLETED(once=kill_at or 1000))
        def kill(engine):
            raise KeyboardInterrupt

        engine.run(loader(as_encoding), max_epochs=3)
        return model.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", kill_at=5)
    torch.manual_seed(1)
    again = run(tmp_path / "killed")
    assert all(torch.equal(again[name], whole[name]) for name in whole)


def test_the_trained_model_is_saved_and_loaded_as_ever(tmp_path):
    model = bert()
    engine = trainer_of(model)
    engine.add_event_handler(Events.COMPLETED, lambda: model.save_pretrained(tmp_path))
    engine.run(loader())
    loaded = BertForSequenceClassification.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
