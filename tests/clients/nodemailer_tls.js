// Sends mail with nodemailer over TLS: nodemailer_tls.js HOST STARTTLS-PORT IMPLICIT-PORT CA.
'use strict';
const fs = require('fs');
const nodemailer = require('nodemailer');
const [host, starttls, implicit, ca] = process.argv.slice(2);

async function main() {
  for (const [port, secure] of [[starttls, false], [implicit, true]]) {
    const transport = nodemailer.createTransport({
      host, port: Number(port), secure, requireTLS: true, name: 'client.test',
      tls: { ca: fs.readFileSync(ca), servername: 'mx.test' }, connectionTimeout: 30000,
    });
    const info = await transport.sendMail({
      envelope: { from: 'sender@client.test', to: ['nodemailer@box.test'] },
      raw: Buffer.from('Subject: raw\r\n\r\nby nodemailer\r\n'),
    });
    if (!/^250 2\.0\.0 Ok: queued as /.test(info.response)) {
      throw new Error(`unexpected reply: ${info.response}`);
    }
    transport.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
