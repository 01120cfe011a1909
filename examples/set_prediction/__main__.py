"""Command line of set prediction; `python -m examples.set_prediction --help`."""

from __future__ import annotations

import argparse
import json
import sys
from math import inf
from pathlib import Path

import numpy as np
import torch

import smm_py

from ..training import rank_and_world, start_processes
from .config import MODELS, PRESETS, Config, from_preset


def parser():
    main = argparse.ArgumentParser(prog="python -m examples.set_prediction", description=(
        "Learn to list the objects of a picture. Without a command: train the tiny preset on built-in "
        "scenes (about 5 minutes on two cores), then evaluate."))
    main.add_argument("command", nargs="?", choices=("train", "eval"))
    main.add_argument("--model", choices=MODELS)
    main.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    main.add_argument("--data", help="folder of a data set in its official layout; default: built-in scenes")
    main.add_argument("--dataset", help="which data set it is, where the folder does not tell")
    main.add_argument("--out", type=Path, help="the run's folder; default: a new one below runs/")
    main.add_argument("--resume", action="store_true", help="go on with the run in --out")
    main.add_argument("--weights", help=".safetensors file to start from or to evaluate")
    main.add_argument("--split", default="val", help="what eval reads (default: val)")
    main.add_argument("--images", type=int, help="how many pictures eval reads (default: 500 scenes, or all)")
    main.add_argument("--draws", type=int, default=3, help="draws of the initial slots in eval (default: 3)")
    main.add_argument("--steps", type=int)
    main.add_argument("--minutes", type=float)
    for name, kind in (("image-size", int), ("max-objects", int), ("min-objects", int), ("slots", int), ("batch-size", int),
                       ("lr", float), ("pictures", int), ("checkpoint-every", int), ("evaluate-every", int),
                       ("log-every", int), ("train-iters", int), ("eval-iters", int), ("warmup", float)):
        main.add_argument("--" + name, type=kind)
    main.add_argument("--variant", choices=("stable", "paper"), help="setting of the slot mixture")
    main.add_argument("--start", choices=("inputs", "gaussian"))
    main.add_argument("--empty-rows", choices=("presence", "all"))
    main.add_argument("--precision", choices=("auto", "float32", "bfloat16"), help="of the convolutions")
    main.add_argument("--seed", type=int)
    main.add_argument("--threads", type=int, help="of PyTorch and of the slot module")
    main.add_argument("--device", default="cpu")
    return main


SETTINGS = ("model", "data", "dataset", "weights", "steps", "minutes", "image_size", "max_objects", "min_objects", "slots",
            "batch_size", "lr", "pictures", "checkpoint_every", "evaluate_every", "log_every", "train_iters", "eval_iters",
            "warmup", "variant", "start", "empty_rows", "precision", "seed")


def configure(options) -> Config:
    given = {name: getattr(options, name) for name in SETTINGS if getattr(options, name) is not None}
    stored = options.out / "config.json" if options.out else None
    if stored and stored.exists() and (options.resume or options.command == "eval"):
        config = Config.load(stored)
        changes = ("data", "dataset", "weights") if options.command == "eval" else ()
        for name in changes:
            setattr(config, name, given.get(name, getattr(config, name)))
        if options.command == "eval" and "eval_iters" in given:
            config.eval_iters = given["eval_iters"]
        differ = [n for n in given if options.resume and getattr(config, n) != given[n]]
        if differ:
            raise ValueError(f"{differ[0]} differs from the run in {options.out}: {getattr(config, differ[0])!r}, "
                             f"got {given[differ[0]]!r}")
        return config
    if options.resume:
        raise ValueError(f"there is no run to resume in {options.out}" if options.out else "--resume needs --out")
    if given.get("model") == "reference":
        given.setdefault("image_size", 128)
        given.setdefault("max_objects", 10)
    return from_preset(options.preset, **given)


def new_folder():
    root = Path("runs")
    number = 1
    while (root / f"set_prediction-{number}").exists():
        number += 1
    return root / f"set_prediction-{number}"


def run_training(options, config, device):
    from .plots import curves
    from .train import train

    rank, world = rank_and_world()
    options.out = options.out or new_folder()
    if not options.resume and (options.out / "metrics.jsonl").exists() and rank == 0:
        raise ValueError(f"{options.out} holds a run already; give --resume to go on with it, or another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        config.save(options.out / "config.json")
        print(f"training {config.model} in {options.out}", flush=True)
    if world > 1:
        torch.distributed.barrier()
    model = train(config, options.out, device)
    if rank == 0:
        curves(options.out)
    return model


def run_evaluation(options, config, model, device):
    from .plots import predictions, table
    from .train import average_precision, build_model, load_weights, open_pictures

    if model is None:
        if options.weights is None:
            if not options.out or not (options.out / "model.safetensors").exists():
                raise ValueError(f"eval needs --weights or a trained run in --out, got --out {options.out}")
            model = build_model(config, "cpu")
            load_weights(model, options.out / "model.safetensors")
            model = model.to(device)
        else:
            config.weights = options.weights
            model = build_model(config, device)
    count = options.images or (500 if config.data is None else None)
    pictures = open_pictures(config, options.split, count)
    draws = average_precision(model, pictures, config, options.draws)
    mean = {t: float(np.mean([d[t] for d in draws])) for t in draws[0]}
    deviation = {t: float(np.std([d[t] for d in draws])) for t in draws[0]}
    print(table(mean, deviation))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        predictions(model, pictures, config, options.out)
        print(f"pictures: {options.out / 'predictions.png'}, {options.out / 'attention.png'}")

    def percent(values):
        return {"inf" if t == inf else f"{t:g}": round(100 * v, 3) for t, v in values.items()}

    print(json.dumps({"ap": percent(mean), "ap_std": percent(deviation), "images": len(pictures), "protocol": {
        "task": "set_prediction", "model": config.model, "data": config.data or "built-in scenes",
        "split": options.split, "image_size": config.image_size, "iterations": config.eval_iters,
        "draws": options.draws, "metric": "AP over the whole set, all-point interpolation"}}))


def main(arguments=None):
    options = parser().parse_args(arguments)
    try:
        device = start_processes(options.device)
        if options.threads:
            torch.set_num_threads(options.threads)
            smm_py.set_num_threads(options.threads)
        config = configure(options)
        model = None
        if options.command in (None, "train"):
            model = run_training(options, config, device)
        if options.command in (None, "eval") and rank_and_world()[0] == 0:
            run_evaluation(options, config, model, device)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
