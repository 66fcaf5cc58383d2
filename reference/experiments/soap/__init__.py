"""SOAP and SOAP-Muon."""
