"""One TOML file into frozen tables, one module for each kind of table; `config` puts them together."""
