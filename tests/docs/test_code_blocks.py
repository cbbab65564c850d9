"""Every block of python in README.md and in docs/ runs as it stands there, those of one file after each other.

What a block needs that readers need not see stands before it in a comment, and so do checks of what came of it::

    <!-- python
    assert trainer.state.epoch == 10
    -->
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.code_blocks import ROOT, blocks_of, program_of, run

TEXTS = [
    path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if blocks_of(path.read_text(encoding="utf-8"))
]


@pytest.mark.slow
@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_block_of_python_runs(path: Path, tmp_path: Path) -> None:
    run(path, tmp_path)


def test_the_readme_has_blocks_of_python() -> None:
    assert TEXTS[0].name == "README.md"


TEXT = """A text.

```python
names = ["shown"]
```

```console
$ not python
```

<!-- python
names += ["hidden"]
-->

Between them.

```python
1 / 0
```
"""


def test_a_program_has_each_line_where_it_stands_in_the_text() -> None:
    lines, program = TEXT.splitlines(), program_of(TEXT).splitlines()
    assert [(number, line) for number, line in enumerate(program) if line] == [
        (number, line) for number, line in enumerate(lines) if line.startswith(("names", "1 /"))
    ]


def test_a_block_that_fails_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text(TEXT)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match=r'text\.md does not run(.|\n)*text\.py", line 18(.|\n)*ZeroDivisionError'):
        run(tmp_path / "text.md", tmp_path / "empty")


def test_a_check_that_fails_in_a_comment_is_seen(tmp_path: Path) -> None:
    (tmp_path / "text.md").write_text("<!-- python\nassert False, 'seen'\n-->\n")
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError, match="seen"):
        run(tmp_path / "text.md", tmp_path / "empty")
