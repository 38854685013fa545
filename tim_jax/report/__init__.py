"""The report of a run, or of an ablation: one HTML page that needs nothing but a browser.

`reading` reads the files of a folder, damaged ones too; `drawing` draws samples from the latest checkpoint; `curves`,
`quality`, `sweeps`, `pictures`, `diagnosis`, `setup` and `comparison` make sections of them; `run_page` and
`ablation_page` put these in order, and `markup` makes HTML in which every text of a file is escaped. Style and scripts
lie in assets/.
"""
