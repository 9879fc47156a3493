"""Tables of which nothing is cut off, however narrow the terminal."""

from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text


class Sheet(Table):
    """A table; where the terminal is too narrow for it, a line a row: "name: heading figure, ...".

    Args:
        first: the heading of the first column, which names the rows.
        headings: of the columns of figures.
        title: what stands above, as wide as the terminal.
        justify: of the columns of figures, "right", or "left" for words.
    """

    def __init__(
        self,
        first: str,
        *headings: str,
        title: str = "",
        justify: Literal["left", "right"] = "right",
    ) -> None:
        super().__init__(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        self.above = title
        self.add_column(first, no_wrap=True)
        for heading in headings:
            self.add_column(heading, justify=justify, no_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The title, then the table where all of it fits, else its rows as lines."""
        if self.above:
            yield console.render_str(self.above, style="italic")
        wanted = self.__rich_measure__(console, options.update(max_width=10_000)).maximum
        if wanted <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        yield ""
        for number in range(self.row_count):
            yield from _lines(self._row(console, number), options.max_width)
        yield ""

    def _row(self, console: Console, number: int) -> list[Text]:
        """The name of a row with a colon, and what its other columns say."""
        found = [list(column.cells)[number] for column in self.columns]
        cells = [
            cell if isinstance(cell, Text) else console.render_str(str(cell)) for cell in found
        ]
        headings = [str(column.header) for column in self.columns]
        style = self.rows[number].style or ""
        named = headings[0] and str(cells[0])[:1].isdigit()  # "keep 0.5", but "dense"
        parts = [Text.assemble(f"{headings[0]} " if named else "", cells[0], ":")]
        parts += [
            Text.assemble(f"{heading} " if heading else "", cell)
            for heading, cell in zip(headings[1:], cells[1:], strict=True)
            if str(cell) not in ("", "-")
        ]
        for part in parts:
            part.stylize(style)
        return parts


def _lines(parts: list[Text], width: int) -> list[Text]:
    """A row as lines that fit into the terminal and are broken between figures; words may wrap."""
    lines, line = [], parts[0]
    for i, part in enumerate(parts[1:], 1):
        piece = Text.assemble(part, "," if i < len(parts) - 1 else "")
        if len(line) + 1 + len(piece) > width >= len(piece) + 2:
            lines.append(line)
            line = Text.assemble("  ", piece)
        else:
            line = Text.assemble(line, " ", piece)
    return [*lines, line]
