"""How many units a narrower or wider network has."""


def scaled(units: int, width: float) -> int:
    return max(1, round(units * width))
