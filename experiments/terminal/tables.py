"""Tables in the terminal."""

from rich.console import Console
from rich.table import Table


def print_row(row: dict[str, str], workdir: str, console: Console, rest: str = "") -> None:
    """Prints a table of one row, names to the left and numbers to the right, and the workdir.

    Args:
      row: names and values.
      workdir: where the rest of it is.
      console: where to.
      rest: behind the workdir.
    """
    table = Table(show_edge=False, pad_edge=False)
    for name in row:
        table.add_column(name, justify="left" if name in ("rule", "execution") else "right")
    table.add_row(*row.values())
    console.print()
    console.print(table)
    # Not in the table: a long path would fold, and could not be copied.
    console.print(f"written to {workdir}{rest}", soft_wrap=True, markup=False, highlight=False)
