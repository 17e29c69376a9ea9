"""Where bytes and facts lie: streams in progress, answers given, scans held."""
