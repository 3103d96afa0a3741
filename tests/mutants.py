"""Does a test notice? Small changes to one module, one at a time, and whether its tests go red.

    python tests/mutants.py collab_repro/curves.py tests/test_comparison.py -n 10 --seed 0

Works on a copy of the repository, prints each change that no test noticed, and ends with 1 if any.
"""

import argparse
import ast
import random
import shutil
import subprocess
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

ROOT = Path(__file__).parents[1]
SWAPS = {ast.Add: ast.Sub, ast.Mult: ast.Div, ast.FloorDiv: ast.Mult, ast.Lt: ast.LtE, ast.Gt: ast.GtE}
SWAPS |= {ast.Eq: ast.NotEq, ast.In: ast.NotIn, ast.Is: ast.IsNot, ast.And: ast.Or, ast.BitAnd: ast.BitOr}
SWAPS |= {new: old for old, new in list(SWAPS.items()) if new not in SWAPS}


def changes(tree: ast.Module) -> list[tuple[ast.AST, str, object]]:
    """Every small change that `tree` allows: a node, its field, and the field's new value."""
    found = []
    for node in ast.walk(tree):
        if type(getattr(node, "op", None)) in SWAPS:
            found.append((node, "op", SWAPS[type(node.op)]()))
        for i, op in enumerate(getattr(node, "ops", [])):
            if type(op) in SWAPS:
                found.append((node, "ops", [*node.ops[:i], SWAPS[type(op)](), *node.ops[i + 1 :]]))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
            found.append((node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else None))
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            found.append((node, "value", not node.value))
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            found.append((node, "value", node.value + 1))
        if isinstance(node, ast.Return) and node.value is not None:
            found.append((node, "value", ast.Constant(None)))
        if isinstance(node, ast.Call):
            kept = ((i, k) for i, k in enumerate(node.keywords) if k.arg)
            found += [(node, "keywords", node.keywords[:i] + node.keywords[i + 1 :]) for i, _ in kept]
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            for i, line in enumerate(body if isinstance(body, list) else []):
                docstring = isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant)
                if isinstance(line, ast.Expr | ast.AugAssign | ast.Raise | ast.If) and not docstring:
                    found.append((node, name, [*body[:i], ast.Pass(), *body[i + 1 :]]))
    return found


def mutants(source: str, n: int, seed: int) -> list[tuple[int, str, str]]:
    """`n` changed versions of `source`, as (line, what the line became, source)."""
    whole, made = ast.parse(source), []
    places = list(range(len(changes(whole))))
    random.Random(seed).shuffle(places)
    for place in places[:n]:
        tree = deepcopy(whole)
        node, name, value = changes(tree)[place]
        if value is None:  # `not x` becomes `x`
            node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
        else:
            setattr(node, name, value)
        ast.fix_missing_locations(tree)
        line = getattr(node, "lineno", 1)
        made.append((line, " ".join(ast.unparse(node).split())[:100], ast.unparse(tree)))
    return made


def red(folder: Path, tests: list[str]) -> bool:
    """Whether the tests fail, or do not end in two minutes, in the copy at `folder`."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, timeout=120).returncode != 0
    except subprocess.TimeoutExpired:
        return True


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("module")
    options.add_argument("tests", nargs="+")
    options.add_argument("-n", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "results", "*.egg-info"))
        file = folder / args.module
        source = file.read_text()
        file.write_text(ast.unparse(ast.parse(source)))
        if red(folder, args.tests):
            sys.exit("the tests are red before any change")
        survived, made = 0, mutants(source, args.n, args.seed)
        for line, became, mutant in made:
            file.write_text(mutant)
            if not red(folder, args.tests):
                survived += 1
                print(f"{args.module}:{line}: no test notices: {became}", flush=True)
    print(f"{args.module}: {len(made) - survived} of {len(made)} changes noticed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
