"""A made world to train and examine a very small model on: no download, no licence, minutes of CPU.

`write_stories` makes a whole input folder from a seed: pretraining shards, a CORE-shaped bundle,
conversations and chat questions. The world has animals with habits and towns with goods and
neighbourhoods, fixed by the seed, and people whose belongings are drawn anew in every story.

What is asked, and why a model that works can answer while a broken one cannot:

- `animal_facts`, `town_facts` (multiple choice) and `fact_answers` (language modeling). Every fact
  is told in several ways all over the text; most are also asked there, in the form of the
  questions. The facts examined are those never asked in any text (`World.held_out`): the answer has
  to be carried over from telling to asking. The animal stands several words before the answer, all
  values of an attribute are equally frequent, and wrong choices are values of the same attribute:
  without attention, or with targets that do not belong to the inputs, one choice is as good as
  another.
- `agreement` (schema): "The owl near the trees" or "The owls near the tree" goes with "is asleep".
  The two nouns always differ in number, so a model that looks at the nearest noun is wrong every
  time, and one that looks at nothing is right half of the time. The pairs of nouns examined never
  share such a phrase in the text.
- `pronouns` (schema): which of two names goes with "because she was late". Only the text tells
  whose name takes he or she; the words just before the pronoun are the same for both. The
  combinations of name, mood and reason examined are not in the text.
- `reading` (language modeling): a story tells where three people are and what they own, then one
  of its sentences begins again. All of it is drawn anew for each story, so nothing learnt by heart
  helps. Its baseline is a third: naming any of the three, without knowing which.

Untrained models and those trained on shuffled targets stay at the baselines, or below.
"""

from reference.stories.files import write_stories

__all__ = ["write_stories"]
