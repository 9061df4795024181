"""Finds and loads the function. A failure is kept and told to every caller: the server stays up."""

import os
import sys

NO_MAIN = "Function signature invalid. Did you forget to export a 'main' function?"
# The virtual environment that the build has made in the function's directory.
ENVIRONMENT = "runtime-env"
CO_COROUTINE = 0x80


class Function:
    """The callable, or why there is none."""

    def __init__(self, main=None, failure=None):
        self.main = main
        self.failure = failure
        self._loop = None

    def loop(self):
        """The event loop of asynchronous functions, on a thread of its own from the first time on."""
        if self._loop is None:
            from runtime.asynchronous import shared_loop

            self._loop = shared_loop()
        return self._loop


def prepare_path(code_dir):
    """Lets the function find its packages where they are: nothing is copied or activated."""
    source_dir = os.path.dirname(code_dir)
    if sys.path[0] != source_dir:
        sys.path.insert(0, source_dir)
    if os.path.isdir(source_dir):
        os.chdir(source_dir)
    environment = os.path.join(code_dir, ENVIRONMENT)
    packages = f"{environment}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    try:
        names = os.listdir(packages)
    except OSError:
        return
    os.environ["VIRTUAL_ENV"] = environment
    os.environ["PATH"] = f"{environment}/bin:{os.environ.get('PATH', os.defpath)}"
    if any(name.endswith(".pth") for name in names):
        import site

        site.addsitedir(packages)
    else:
        sys.path.append(packages)


def load(code_dir, entrypoint):
    """Imports the entrypoint as a module of the package `function`, so that its siblings can be imported relatively."""
    if not os.path.isfile(os.path.join(code_dir, entrypoint)):
        return Function(failure=f"Failed to load entrypoint, file {entrypoint} does not exist.")
    package = os.path.basename(code_dir)
    path = os.path.normpath(entrypoint.removesuffix(".py")).replace(os.sep, ".")
    try:
        from importlib import import_module

        module = import_module(f"{package}.{path}")
        main = getattr(module, "main", None)
        if not callable(main):
            return Function(failure=NO_MAIN)
        function = Function(main=main)
    except BaseException as error:
        return Function(failure=explain(error, entrypoint))
    if getattr(getattr(main, "__code__", None), "co_flags", 0) & CO_COROUTINE:
        import runtime.asynchronous  # noqa: F401 - loaded before the first execution needs it
    return function


def explain(error, entrypoint):
    from runtime.logger import describe

    details = describe(error)
    if isinstance(error, SyntaxError):
        return f"Syntax error in {entrypoint}: {error.msg}\n{details}"
    if isinstance(error, ModuleNotFoundError):
        return f"Module not found: {error.name}\n{details}"
    return f"Failed to load module: {error}\n{details}"
