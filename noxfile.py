"""The project's tasks: `nox -s lint typecheck tests docs`, and the slow ones."""

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
    install(session, "test", project=".[dask,edf,tensorboard]")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def tests_slow(session: nox.Session) -> None:
    """The tests that take minutes."""
    install(session, "test", project=".[dask,edf,tensorboard]")
    session.run("python", "-m", "pytest", "-m", "slow", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Check that configs/*.yaml and docs/cli.md are up to date; `-- --write` updates them."""
    install(session, "test")
    session.run("python", "docs/generate.py", *session.posargs)


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
