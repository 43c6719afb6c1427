"""The text of the IOI prompts: templates, names, places and objects.

A template has five slots: `{first}` and `{second}` are the two people of the opening clause,
`{giver}` is the one who acts, then there are `{place}` and `{object}`. The order ABBA puts the
indirect object first and BABA puts it second, so each template serves both orders.

What every template keeps to, so that prompts can be read token by token:
- no slot stands at the very beginning: every word has a space before it;
- it ends with "to", and its last verb is one that is followed by a person (after "brought" or
  "carried", "to" is as likely to be followed by a place);
- it contains none of the words below outside its slots, in either case.

Most templates have fifteen tokens in the vocabularies of GPT-2 and SmolLM2, sixteen behind a
beginning-of-text token. The last six are of other lengths.
"""

from __future__ import annotations

TEMPLATES: tuple[str, ...] = (
    "Today, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "When {first} and {second} went to the {place} today, {giver} gave a {object} to",
    "After {first} and {second} had been at the {place}, {giver} gave a {object} to",
    "While {first} and {second} were at the {place}, {giver} kindly gave a {object} to",
    "Once {first} and {second} had finally reached the {place}, {giver} gave a {object} to",
    "Last night {first} and {second} met at the {place} and {giver} gave a {object} to",
    "Because {first} and {second} worked together at the {place}, {giver} gave a {object} to",
    "As {first} and {second} were leaving the {place}, {giver} quietly passed a {object} to",
    "This morning {first} and {second} visited the {place}, and {giver} sold a {object} to",
    "Earlier, {first} and {second} talked at the {place}. {giver} sent a {object} to",
    "While {first} and {second} were waiting outside the {place}, {giver} showed a {object} to",
    "At the {place}, {first} and {second} found a {object}, which {giver} gave to",
    "Inside the {place}, {first} and {second} sat down. {giver} lent a {object} to",
    "Near the {place}, {first} ran into {second}, and {giver} gave a {object} to",
    "Later that day {first} and {second} left the {place}. {giver} gave a {object} to",
    "Although {first} and {second} argued at the {place}, {giver} still gave a {object} to",
    "Before dinner, {first} and {second} left the {place}. {giver} handed a {object} to",
    "Before {first} and {second} could enter the {place}, {giver} had given a {object} to",
    "Yesterday, {first} and {second} met at the {place}. {giver} offered a {object} to",
    "On Monday, {first} and {second} toured the {place}. {giver} mailed a {object} to",
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "As soon as {first} and {second} got back from the {place}, {giver} handed a {object} to",
    "It was raining when {first} and {second} left the {place}, so {giver} gave a {object} to",
    "After a long morning at the {place}, {first} and {second} went home, where {giver} gave a {object} to",
    "The {place} was crowded when {first} and {second} got there, so {giver} handed a {object} to",
    "Everyone at the {place} was happy to see {first} and {second} again, and {giver} showed a {object} to",
)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    """
    Mary John Tom James Daniel Sarah Emily Jack Anna Laura David Michael Robert William Richard Charles
    Joseph Thomas Paul Mark George Kenneth Steven Edward Brian Ronald Anthony Kevin Jason Matthew Gary
    Timothy Jose Larry Jeffrey Frank Scott Eric Stephen Andrew Raymond Gregory Joshua Jerry Dennis Walter
    Patrick Peter Harold Douglas Henry Carl Arthur Ryan Roger Joe Juan Albert Jonathan Justin Terry Gerald
    Keith Samuel Ralph Lawrence Nicholas Roy Benjamin Bruce Adam Harry Fred Wayne Billy Steve Louis Jeremy
    Aaron Randy Howard Eugene Carlos Russell Bobby Victor Martin Ernest Phillip Todd Jesse Craig Alan Simon
    Luke Oliver Max Leo Owen Noah Liam Ethan Jacob Tyler Kyle Sean Evan Ian Neil Philip Oscar Felix Hugo
    Linda Barbara Elizabeth Jennifer Maria Susan Margaret Dorothy Lisa Nancy Karen Betty Helen Sandra Donna
    Carol Ruth Sharon Michelle Jessica Kimberly Deborah Angela Melissa Rebecca Virginia Kathleen Amy Martha
    Amanda Stephanie Carolyn Christine Marie Janet Catherine Frances Ann Joyce Diane Alice Julie Heather
    Teresa Gloria Cheryl Katherine Joan Ashley Judith Nicole Judy Christina Kathy Denise Jane Rachel Andrea
    Louise Sara Anne Julia Ruby Tina Paula Diana Annie Emma Olivia Sophia Lily Grace Claire Hannah Kate Lucy
    Molly Chloe Zoe Megan Victoria Caroline Sophie Charlotte Eva Erin Holly Alex Sam Ben Dan Tim Jim Bob
    Bill Mike Chris Nick
    """
)

PLACES = _words(
    """
    store park school garden library market office hospital museum restaurant station zoo bar cafe church
    farm gym house hotel mall theater cinema airport bakery bank pool stadium castle temple palace studio
    factory university college clinic shop pub club barn bookstore supermarket kitchen playground laboratory
    tower camp cabin gallery village plaza warehouse garage lodge
    """
)

OBJECTS = _words(
    """
    ring book pen ball drink snack hat card letter photo ticket watch phone coin cup bottle gift camera map
    magazine toy cookie cake flower bag box coat shirt knife pencil notebook guitar sandwich candle lamp
    blanket picture newspaper towel jacket bracelet necklace wallet basket bowl glass key laptop radio poster
    mirror brush bell belt mug plate spoon rope hammer stamp doll kite flag pillow helmet basketball football
    """
)
