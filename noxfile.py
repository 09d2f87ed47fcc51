"""The project's tasks: `nox -s lint typecheck tests docs`, and slower ones: `tests_slow`, `package`, …"""

import shutil
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typecheck", "tests", "docs"]

PYPROJECT = nox.project.load_toml("pyproject.toml")


def install(session: nox.Session, *groups: str, project: str | None = ".") -> None:
    """Install the project (`.[dask]` with an extra; None not at all) and dependency groups."""
    requirements = nox.project.dependency_groups(PYPROJECT, *groups) if groups else ()
    session.install(*(("-e", project) if project else ()), *requirements)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting; `-- --fix` repairs what it can."""
    install(session, "lint", project=None)
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Types, strictly."""
    install(session, "test", "typecheck")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The fast suite, offline and in one process."""
    install(session, "test", project=".[dask,edf,onnx,tensorboard]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def tests_slow(session: nox.Session) -> None:
    """The tests that take minutes."""
    install(session, "test", project=".[dask,edf,onnx,tensorboard]")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site in build/site, without a warning or dead link; `-- --write` updates generated files.

    `-- --external` also asks every host that a page links to.
    """
    install(session, "test", "docs")
    session.run("python", "docs/generate.py", *(option for option in session.posargs if option == "--write"))
    sphinx = ("sphinx-build", "--fail-on-warning", "--keep-going", "--fresh-env", "docs")
    session.run(*sphinx, "build/site")
    session.run("python", "docs/check_links.py", "build/site")
    if "--external" in session.posargs:
        session.run(*sphinx, "build/links", "--builder", "linkcheck")


@nox.session
def package(session: nox.Session) -> None:
    """Build wheel and sdist, then install the wheel elsewhere and train, verify and inflate there."""
    install(session, "package", project=None)
    built = Path("build/package").resolve()
    shutil.rmtree(built, ignore_errors=True)
    session.run("cffconvert", "--validate")
    session.run("python", "-m", "build", "--outdir", str(built))  # the wheel is built from the sdist
    files = sorted(map(str, built.iterdir()))
    session.run("twine", "check", "--strict", *files)
    wheel = next(file for file in files if file.endswith(".whl"))
    python = f"{session.virtualenv.bin}/python"
    with tempfile.TemporaryDirectory() as elsewhere, session.chdir(elsewhere):
        session.run("uv", "venv", "--python", python, "env")
        session.run("uv", "pip", "install", "--python", "env", wheel)
        for program, *arguments in FROM_THE_WHEEL:
            session.run(f"env/bin/{program}", *arguments, external=True, env={"PYTHONPATH": ""})


FROM_THE_WHEEL = (
    (
        "python",
        "-c",
        "import biofound, pathlib; here = pathlib.Path(biofound.__file__).parent; print(here); "
        "assert here.parent.name == 'site-packages' and (here / 'py.typed').is_file()",
    ),
    ("biofound", "pretrain", "--fast"),
    (
        *("biofound", "pretrain", "--config", "small_data", "--data-dir", "synthetic:icu"),
        *("--steps", "4", "--hours-per-epoch", "0.2", "--output-dir", "small_data"),
    ),
    (
        *("biofound", "verify", "--checkpoint", "artifacts/foundation_model/best_model.pt"),
        *("--data-dir", "artifacts/foundation_model/embedded_cohort"),
    ),
    ("biofound", "inflate", "--to", "5"),
    (
        "python",
        "-c",
        "import biofound, numpy as np; x = np.random.default_rng(0).standard_normal((2, 15000)); "
        "encoder = biofound.load_pretrained('synthetic-base'); "
        "print(encoder.embed(encoder.preprocess(x, sfreq=250, gate=False).x).shape)",
    ),
    ("biofound", "export", "--checkpoint", "synthetic-base", "--to", "huggingface", "--output", "exported"),
)
"""The main job, run where nothing but the wheel can be imported."""


@nox.session
def bench(session: nox.Session) -> None:
    """The measurements; they print tables."""
    install(session, "test", "bench")
    session.run("python", "-m", "tests.benchmarks", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Damaged files on every surface that reads, a minute each; `-- --minutes 60 --surface vital`."""
    install(session, "test")
    session.run("python", "-m", "tests.fuzz", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Broken copies of the program, each with the test that has to fail on it; `-- --only mask` for some."""
    install(session, "test")
    session.run("python", "-m", "tests.mutants", *session.posargs, env={"OMP_NUM_THREADS": "1"})
