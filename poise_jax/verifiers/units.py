"""Units of measure and of money: which ones exist, and how one converts to another."""

import dataclasses
import re
from collections.abc import Mapping
from fractions import Fraction

# Dimension -> size in the dimension's base unit -> names in the singular. All sizes are exact.
_TABLE = {
  "length": {"1": "m meter metre", "0.0254": "in inch inche", "0.3048": "ft foot feet",
    "0.9144": "yd yard", "1609.344": "mi mile"},
  "mass": {"1": "g gram gramme", "453.59237": "lb pound", "28.349523125": "oz ounce",
    "1000000": "tonne", "1000": "kilo"},
  "time": {"1": "s second sec", "60": "min minute", "3600": "h hour hr", "86400": "day",
    "604800": "week"},
  "months": {"1": "month", "12": "year yr", "120": "decade", "1200": "century centurie"},
  "liquid": {"1": "l liter litre", "3.785411784": "gal gallon", "0.946352946": "quart",
    "0.473176473": "pint", "0.2365882365": "cup"},
  "dollars": {"1": "\\$ dollar usd us\\$ buck", "0.01": "cent ¢"},
  "euros": {"1": "€ euro eur"},
  "pounds sterling": {"1": "£ gbp"},
  "yen": {"1": "¥ yen jpy"},
  "yuan": {"1": "yuan rmb cny"},
  "rupees": {"1": "₹ rupee rs inr"},
  "angle": {"1": "° degree deg"},
  "radians": {"1": "rad radian"},
  "celsius": {"1": "°C celsius"},
  "fahrenheit": {"1": "°F fahrenheit"},
  "kelvin": {"1": "K kelvin"},
  "frequency": {"1": "Hz hertz"},
  "rotation": {"1": "rpm"},
  "force": {"1": "N newton"},
  "energy": {"1": "J joule", "4.184": "cal calorie", "4184": "kcal", "3600000": "kWh"},
  "power": {"1": "W watt"},
  "voltage": {"1": "V volt"},
  "current": {"1": "amp ampere"},
  "resistance": {"1": "ohm"},
  "pressure": {"1": "Pa pascal"},
  "amount": {"1": "mol mole"},
  "data": {"1": "byte", "0.125": "bit"},
}  # fmt: skip
_PREFIXES = {
  "k": ("kilo", "1000"), "c": ("centi", "0.01"), "m": ("milli", "0.001"), "d": ("deci", "0.1"),
  "µ": ("micro", "1e-6"), "n": ("nano", "1e-9"), "M": ("mega", "1e6"), "G": ("giga", "1e9"),
}  # fmt: skip
# Usual prefixes only, so that few products of variables look like units.
_PREFIXED = {
  "m": "kcdmµn", "g": "kmµ", "s": "mµn", "l": "cdm", "Hz": "kMG", "N": "k", "J": "kM", "W": "kM",
  "V": "km", "Pa": "kM", "mol": "m",
}  # fmt: skip
_COMPOUND = {  # name -> spelling in units of the table
  "mph": "mi/h", "kph": "km/h", "kmph": "km/h", "kmh": "km/h", "fps": "ft/s", "cc": "cm^3",
  "hectare": "10000 m^2", "ha": "10000 m^2", "acre": "43560 ft^2",
}  # fmt: skip
_NEUTRAL = "unit"  # in any power, says nothing
_PLAIN_LETTERS = ("m", "g", "s", "h", "l", "L")  # units that may stand alone as one plain letter
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname|rm)(?![a-zA-Z])")
_TOKEN = re.compile(r"\s*(\\\$|°[CF](?![a-z])|[A-Za-z]+|[°$€£¢¥₹µΩ]|\^-?\d|[/()])")


@dataclasses.dataclass(frozen=True)
class Unit:
  """A product of powers of dimensions; or the noun of counted things, "18 brown eggs"."""

  powers: frozenset[tuple[str, int]] = frozenset()  # (dimension, power)
  size: Fraction = Fraction(1)  # in base units
  noun: frozenset[str] = frozenset()  # words

  @property
  def neutral(self) -> bool:
    """Whether it is no unit at all, or says as little ("5 square units")."""
    return not self.powers and not self.noun

  def ratio(self, other: "Unit") -> Fraction | None:
    """How many of `other` one of these is, None if they measure different things.

    A neutral unit is taken for the other's unit; nouns are the same if one has the other's words.
    """
    if self.neutral or other.neutral:
      return Fraction(1)
    same_noun = self.noun <= other.noun or other.noun <= self.noun
    if self.powers != other.powers or bool(self.noun) != bool(other.noun) or not same_noun:
      return None
    return self.size / other.size


def _names() -> Mapping[str, Unit]:
  """The unit of every name, with and without prefixes."""
  table = {}
  for dimension, sizes in _TABLE.items():
    for size, names in sizes.items():
      short, *long = names.split()
      for prefix in ["", *(_PREFIXED.get(short, "") if size == "1" else "")]:
        spelled, factor = _PREFIXES.get(prefix, ("", "1"))
        unit = Unit(frozenset({(dimension, 1)}), Fraction(size) * Fraction(factor))
        table |= {prefix + short: unit} | {spelled + name: unit for name in long}
  return table


_UNITS = _names()


def parse_unit(text: str) -> Unit | None:
  r"""The unit that a text names: "km/h", "\text{m/s}^2", "square feet", None if it names none.

  A single plain letter is a unit only if it is m, g, s, h or l; in \text or \mathrm, others are.
  """
  wrapped = bool(_WRAPPER.search(text))
  text = re.sub(r"\\frac\s*\{(.*?)\}\s*\{(.*)\}", r"\1/\2", text.replace(r"^\circ", "°"))
  text = re.sub(r"\^\s*\{\s*\\circ\s*\}", "°", _WRAPPER.sub(" ", text))
  text = re.sub(r"\\(?:cdot|times)(?![a-zA-Z])|[{}]|(?<=[a-z])\.(?=\s|$)", " ", text)
  text = re.sub(r"\\mu\s*", "µ", re.sub(r"\bper\b", "/", text))
  text = re.sub(r"°\s+(?=[CF]\b)", "°", re.sub(r"\s*\^\s*", "^", text))
  text = text.strip()
  if re.fullmatch(r"[A-Za-z]", text) and not wrapped and text not in _PLAIN_LETTERS:
    return None
  return _product(text)


def _product(text):
  """The unit of a text without LaTeX, None if a word in it is no unit."""
  words, place = [], 0
  while place < len(text):
    token = _TOKEN.match(text, place)
    if not token:
      return None
    words.append(token[1])
    place = token.end()
  powers, size, sign, power, found = {}, Fraction(1), 1, 0, False
  for i, word in enumerate(words):
    following = words[i + 1] if i + 1 < len(words) else ""
    if word == "/":
      sign = -1
    elif word in ("square", "sq", "cubic", "cu"):
      power = 3 if word[0] == "c" else 2
    elif word in "()" or word[0] == "^" or word in ("squared", "cubed"):
      continue
    else:
      unit = _named(word)
      if unit is None:
        return None
      found = True
      own = re.fullmatch(r"\^(-?\d)", following)
      exponent = int(own[1]) if own else {"squared": 2, "cubed": 3}.get(following, power or 1)
      power, exponent = 0, exponent * sign
      size *= unit.size**exponent
      for dimension, each in unit.powers:
        powers[dimension] = powers.get(dimension, 0) + each * exponent
  return Unit(frozenset((d, p) for d, p in powers.items() if p), size) if found else None


def _named(word):
  for name in (word, word.lower(), word.lower().removesuffix("s")):
    if name == _NEUTRAL:
      return Unit()
    if name in _COMPOUND:
      number, _, rest = _COMPOUND[name].rpartition(" ")
      unit = _product(rest)
      return Unit(unit.powers, unit.size * int(number or 1))
    if name in _UNITS and (len(word) > 1 or name == word or word == "L"):
      return _UNITS[name]
  return None
