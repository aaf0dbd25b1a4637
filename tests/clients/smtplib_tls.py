"""Sends mail with Python's smtplib over TLS: smtplib_tls.py HOST STARTTLS-PORT IMPLICIT-PORT CA FILE."""
import smtplib
import ssl
import sys

host, starttls, implicit, ca, file = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
with open(file, "rb") as opened:
    message = opened.read()
with smtplib.SMTP(host, int(starttls), local_hostname="client.test", timeout=30) as client:
    client.starttls(context=context)
    client.ehlo()
    assert not client.has_extn("starttls") and client.has_extn("pipelining")
    assert client.sendmail("sender@client.test", "smtplib@box.test", message) == {}
with smtplib.SMTP_SSL(host, int(implicit), "client.test", timeout=30, context=context) as client:
    assert client.sendmail("sender@client.test", "smtplib@box.test", message) == {}
