"""What a tokenizer does to an image, as pictures: `python -m dart.draw IMAGE --model NAME`.

Importing it imports nothing; `dart.draw.figures` needs matplotlib.
"""
