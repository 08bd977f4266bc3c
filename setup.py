"""Reads settings.ini, so that every fact about the package has one home."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
train = cfg['train_requirements'].split()

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'], license='Apache-2.0',
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    packages=find_packages(include=['consistency_nb*']), package_data={'consistency_nb': ['weights/*']},
    python_requires='>=' + cfg['min_python'], install_requires=cfg['requirements'].split(),
    extras_require={'train': train, 'dev': train + cfg['dev_requirements'].split()},
    entry_points={'nbdev': ['consistency_nb = consistency_nb._modidx:d']}, zip_safe=False)
