"""Values that no honest client sends."""

from __future__ import annotations

import json
import math
import random
from typing import Any

LONG = 100_000  # characters

WRONG_TYPES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    "",
    "text",
    [],
    {},
    [1, 2, 3],
    [[]],
    {"a": 1},
    {"__value__": None},
    {"__value__": [1, 2]},
    {"__value__": {"__value__": 1}},
    [None, None],
    ["1"],
    ["nobody", 0],
    ["1", 0, 0],
)

NUMBERS: tuple[Any, ...] = (
    0,
    -0.0,
    -1,
    1,
    2,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63) - 1,
    10**30,
    10**400,
    1e-320,
    -1e-12,
    0.1,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    -math.inf,
    "1e999",
    "nan",
    "-0",
    "0x10",
    "1_000",
    "٣",
    " 7 ",
)

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n\t\r",
    "\0",
    "a\0b",
    "\x1b[31m",
    "\ud800",
    "é́",
    "👩‍👩‍👧‍👦",
    "مرحبا",
    "\u202egnp.x",
    "\u200b",
    "\ufeff",
    "𝕬𝖑𝖎𝖈𝖊",
    "İıſß",
    "x" * LONG,
    "é" * 300,
    "(" * 2000,
    "{" * 2000,
    "[" * 2000,
    "9" * 5000,
    "a = " + "9" * 5000,
    "(word:" + "9" * 400 + ")",
    "(word:nan)",
    "((((word:1e999))))",
    "{alice}",
    "{nobody}",
    "{0.__class__.__mro__}",
    "{}",
    "%s%n%d",
    "%(x)s",
    "%date:yyyy%",
    "${HOME}",
    "$(id)",
    "`id`",
    "embedding:../../x",
    "<lora:x:1>",
    "'; DROP TABLE poses; --",
    "<script>alert(1)</script>",
    "null",
    "NaN",
    "true",
    "[]",
    "{}{}",
    "a = b\n= 8\nface = 0\nface=-1",
    "face = 1\nface = 1",
    "1,2,3",
    "0,0,0",
    "nan, nan, nan",
    "inf, 1, 1",
    "-1, 2, 0",
    "1e400, 1, 1",
    "0.4; 0.4; 0.2",
    "a\rb",
    "line\u2028separator",
    "\n" * 3000,
    ",".join(["person"] * 5000),
)

# Absolute names lead into the sandbox alone; `ROOT` is put in by `with_root`.
ROOT = "@SANDBOX@"
PATHS: tuple[str, ...] = (
    "..",
    ".",
    "/",
    "../escaped",
    "../../escaped",
    "../../../escaped",
    "..\\..\\escaped",
    "a/../../escaped",
    "ensemble/../../escaped",
    f"{ROOT}/escaped",
    f"{ROOT}/escaped/deep",
    f"{ROOT}",
    f"file://{ROOT}/escaped",
    "C:\\escaped",
    "C:escaped",
    "\\\\server\\share\\escaped",
    "~/escaped",
    "~root",
    "./escaped",
    "escaped/",
    "escaped/.",
    "escaped//x",
    ".hidden",
    "CON",
    "nul.safetensors",
    "LPT1.txt",
    "name.",
    "name ",
    "a:b",
    "a*b?",
    "a\0b.png",
    "%2e%2e%2fescaped",
    "..%00/escaped",
    "....//escaped",
    "ensemble_alice.png/../escaped",
    "ensemble_alice.png [output]",
    "../escaped.png [temp]",
    "ensemble_alice.png [input]",
    "ensemble_tiny_flux.safetensors",
    "../vae/ensemble_tiny_vae.safetensors",
    "x" * 255,
    "x" * 4096,
    "x/" * 2000,
    "é" * 200,
    "\ud800.png",
    "\u202e.png",
    "-rf",
    "*",
    "ünï cödé",
)

SETTINGS: tuple[Any, ...] = (
    {"steps": -1},
    {"steps": 0},
    {"steps": 1.5},
    {"steps": "1"},
    {"steps": None},
    {"steps": 10**400},
    {"learning_rate": 10**400},
    {"learning_rate": math.nan},
    {"learning_rate": -1},
    {"learning_rate": 1e308},
    {"batch_size": 0},
    {"batch_size": 2**40},
    {"accumulation": 2**40},
    {"seed": 2**70},
    {"seed": -1},
    {"workers": -1},
    {"workers": 10**9},
    {"save_every": -1},
    {"keep": 0},
    {"betas": [1]},
    {"betas": [2, 3]},
    {"betas": "ab"},
    {"run": "../escaped"},
    {"run": ""},
    {"run": None},
    {"run": "x" * 300},
    {"run": "a\0b"},
    {"run": f"{ROOT}/escaped"},
    {"precision": "fp4"},
    {"precision": 16},
    {"schedule": None},
    {"schedule": []},
    {"nobody": 1},
    {"__class__": 1},
    {"": 1},
    {"lora_rank": 0},
    {"lora_rank": 10**9},
    {"lora_rank": -4},
    {"queries": 10**9},
    {"queries": 0},
    {"qformer_width": 10**7},
    {"qformer_heads": 7},
    {"reference_size": 10**6},
    {"regions": "nowhere"},
    {"condition_dropout": 2},
    {"ema_decay": 1},
    {"clip_norm": math.inf},
    {"warmup_steps": 10**12},
    {"augment_references": "yes"},
)


def with_root(value: Any, root: str) -> Any:
    """The value with the sandbox's own path where `ROOT` stands."""
    if isinstance(value, str):
        return value.replace(ROOT, root)
    if isinstance(value, list):
        return [with_root(each, root) for each in value]
    if isinstance(value, dict):
        return {with_root(name, root): with_root(each, root) for name, each in value.items()}
    return value


def hostile_settings(text: str, generator: random.Random) -> str:
    """A training's settings, JSON text, with one of them wrong, or no JSON any more."""
    way = generator.randrange(6)
    if way == 0:
        return generator.choice(TEXTS)
    if way == 1:
        return text[: generator.randrange(len(text) + 1)]
    if way == 2:
        return json.dumps(generator.choice(WRONG_TYPES))
    settings = json.loads(text)
    if way == 3:
        settings[generator.choice(list(settings))] = generator.choice((*WRONG_TYPES, *NUMBERS))
    else:
        settings |= generator.choice(SETTINGS)
    return json.dumps(settings)


def hostile_text(generator: random.Random) -> str:
    """Text or a path-like name."""
    return generator.choice(generator.choice((TEXTS, PATHS)))


def hostile_value(generator: random.Random) -> Any:
    """Anything at all."""
    return generator.choice(generator.choice((WRONG_TYPES, NUMBERS, TEXTS, PATHS)))
