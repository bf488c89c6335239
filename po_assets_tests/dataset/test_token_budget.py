from po_assets.dataset.publication import RememberedLengths


def test_a_row_is_counted_once_and_every_change_of_it_anew() -> None:
    counted: list[tuple[str, str]] = []

    def count(rows: list[tuple[str, str]]) -> list[int]:
        counted.extend(rows)
        return [len(prompt) * 10 + len(response) for prompt, response in rows]

    lengths = RememberedLengths(count)
    assert lengths([("ab", "c"), ("a", "bc"), ("ab", "c")]) == [21, 12, 21]
    assert lengths([("a", "bc"), ("ab", "d")]) == [12, 21]
    assert counted == [("ab", "c"), ("a", "bc"), ("ab", "d")]


def test_no_rows_are_no_lengths() -> None:
    assert RememberedLengths(lambda rows: [1 for _ in rows])([]) == []
